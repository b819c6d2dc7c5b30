"""`archibald-pgq bench`: what this queue does on this server, beside what the server does at most.

    run      from the database to the report; an interruption
    scenes   what is measured, one function each
    stage    an empty queue with a worker, for one round
    app      what the worker runs
    report   the rows that come of it

A worker is a process of `archibald-pgq run`, the daemon itself, with its default settings; jobs are enqueued with the public `Archibald`.
"""
