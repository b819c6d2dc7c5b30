"""Every error that this package raises on purpose.

Guarantees: each message is one sentence that says what is wrong, where, and how to mend it, so that the command line can print
it as it stands; no message carries a password. Must not: import anything else of the package.
"""

from __future__ import annotations


class ArchibaldError(Exception):
    """The root of all errors of this package; its text is one sentence for a person."""


class ConfigError(ArchibaldError):
    """A setting, an argument or the app of `run` is unusable."""


class DatabaseError(ArchibaldError):
    """The database cannot be used: wrong DSN, not reachable, or it refused a statement."""


class NotPermittedError(DatabaseError):
    """The login of this connection may not do this; `archibald-pgq roles` makes roles that may."""


class SchemaError(DatabaseError):
    """The schema `archibald` is missing, too old, or too new for this code."""


class InvalidJobError(ArchibaldError, ValueError):
    """A job that cannot be enqueued: bad user_id, payload, key, delay or kind."""


class UnknownKindError(InvalidJobError):
    """The kind is not in `archibald.operations`."""


class AgentBacklogError(ArchibaldError):
    """The agent has as many queued jobs as it may have; the same enqueue passes when some of them have run."""


class UnknownJobError(ArchibaldError, LookupError):
    """No job has this id."""


class JobFailedError(ArchibaldError):
    """The awaited job ended as `failed`; the text is the job's error."""


class JobCancelledError(ArchibaldError):
    """The awaited job ended as `cancelled`."""


class JobNeedsReviewError(ArchibaldError):
    """The awaited job may or may not have had its effect; a person decides."""


class JobStateError(ArchibaldError):
    """What was asked of a job cannot be done in the state that it is in; the text names the state."""


class BrowserError(ArchibaldError):
    """No browser context can be had; a job that meets it goes back to its place."""


class BrowserDiedError(BrowserError):
    """The browser ended while it was used."""


class BrowserSaturatedError(BrowserError, TimeoutError):
    """No browser context, or no login, came free for as long as anybody waits; the same passes later."""


class LoginError(BrowserError):
    """The app's login of an agent failed by an error of its own, or left no valid session; a job that meets it has failed."""


class StepUnknownError(ArchibaldError):
    """A step of the job was begun by an earlier run, and nothing can tell whether it happened; let through, it ends in a review."""


class UnreachableError(ArchibaldError):
    """The system behind the agent's login cannot be reached, and this run did nothing there.

    For a handler, or a login, to raise: the job goes back to its place with no attempt spent; after three in a row the agent is paused.
    """


class LoginRefusedError(ArchibaldError):
    """The system refuses the agent's login, as with a wrong password.

    For a handler, or a login, to raise: the job goes back to its place, and the agent is paused until somebody resumes it.
    """


class UnknownAgentError(ArchibaldError, LookupError):
    """No agent of this name ever had a job."""


class WaitTimeoutError(ArchibaldError, TimeoutError):
    """The awaited job was not finished within the given number of seconds; it goes on."""
