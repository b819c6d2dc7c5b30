"""Start the supervisor as a light process of its own, by path: `python -I -S …/boot.py DATA_DIR BIN MAJOR SETTINGS`.

Owns: detaching from the command that starts it. Guarantees: none of the package's `__init__` modules run, so that the
supervisor costs the standard library only, whatever the package itself comes to import. Must not: be imported.
"""

import os
import sys
import types
from pathlib import Path


def _without_init(folder: Path) -> None:
    """Make the packages down to this one importable without running their `__init__` modules."""
    for depth, name in ((2, "archibald_pgq"), (1, "archibald_pgq.store"), (0, "archibald_pgq.store.embedded")):
        package = types.ModuleType(name)
        package.__path__ = [os.fspath([folder, *folder.parents][depth])]
        sys.modules[name] = package


if __name__ == "__main__":
    if os.fork() > 0:
        os._exit(
            0
        )  # the command reaps this one at once; the supervisor itself is nobody's child, nor a session's leader
    _without_init(Path(__file__).resolve().parent)
    from archibald_pgq.store.embedded.supervisor import main

    main(sys.argv[1:])
