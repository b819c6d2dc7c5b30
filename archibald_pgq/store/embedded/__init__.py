"""The embedded Postgres: the default when no database is given.

Owns: finding PostgreSQL's programs, making a data folder, and one server per data folder that lives exactly as long as
some command uses it. Guarantees: a server belongs to a small supervisor process and not to the command that happened
to come first; each command is joined by a connection that the kernel closes for it however it dies; what was committed
is there after any kill. Must not: know the queue's tables, open a TCP port, or change a folder outside the data
folder.

    command --(Unix socket, held open)--+
    command --(Unix socket, held open)--+--> supervisor --(child)--> postgres
    command --(Unix socket, held open)--+

`client` and `joining` are the commands' side, `supervisor` the loop that serves them, `cluster` the one server under
it, `account` who runs it, `layout` the names in the data folder, `programs` where the binaries are, `boot` how the
supervisor starts light.
"""

from archibald_pgq.store.embedded.client import EmbeddedServer, default_data_dir, join, running
from archibald_pgq.store.embedded.programs import Programs, find_programs, find_psql

__all__ = ["EmbeddedServer", "Programs", "default_data_dir", "find_programs", "find_psql", "join", "running"]
