"""Running jobs: the worker and its parts.

A worker is one process. Its *dispatcher* owns the one direct connection that holds the agents' locks, and takes turns: settle what ended,
claim what may run. Ten *consumers* ask it for jobs and give back outcomes; the *executor* turns one job into one outcome. A *heartbeat*
thread keeps the lease, *maintenance* takes over from workers that lost theirs, a *listener* hears notifications, which are only hints.

May import: `store`, `domain`, `config`, `errors`. Must not: know the command line or the `Archibald` object.
"""
