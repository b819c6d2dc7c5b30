"""`archibald-pgq run`: the daemon."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from archibald_pgq import config
from archibald_pgq.app import Archibald
from archibald_pgq.errors import ConfigError
from archibald_pgq.store.target import Target, check_target, open_target

EXAMPLE = "archibald_pgq.examples.erp:app"

logger = logging.getLogger("archibald_pgq")


def run(
    app: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:APP]",
            help="The app; else ARCHIBALD_APP, else [tool.archibald-pgq] app in ./pyproject.toml.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C.

    A second one ends the grace at once.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = config.load()
    name = app or settings.app or _from_pyproject(Path("pyproject.toml"))
    loaded = load_app(name) if name else None
    url = (loaded.database_url if loaded else None) or settings.database_url
    if loaded is None and url is not None:
        raise ConfigError("no app is named; give it as `archibald-pgq run MODULE:APP`, or set ARCHIBALD_APP")
    with open_target(url, settings) as target:
        if not target.embedded:
            check_target(target)
        if loaded is None:
            logger.info("no app is named: running the example ERP's, %s", EXAMPLE)
            loaded = load_app(EXAMPLE)
        code = asyncio.run(_serve(loaded, target))
    raise typer.Exit(code)


def load_app(name: str) -> Archibald:
    """Import MODULE and return its APP.

    Raises:
        ConfigError: it cannot be found or is no Archibald; the message says which.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"the app {name!r} must be MODULE:APP, such as shop.tasks:app")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"the app's module {module_name!r} cannot be found from {folder}") from None
        raise ConfigError(
            f"the app's module {module_name!r} needs a module that is not installed: {error.name}"
        ) from None
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(
            f"the app's module {module_name!r} fails when it is imported: {what} ({_where(error)})"
        ) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Archibald):
        what = "has no" if found is None else f"has a {type(found).__name__}, not an Archibald, as"
        raise ConfigError(f"the module {module_name!r} {what} {attribute!r}; write `{attribute} = Archibald()` there")
    return found


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


def _from_pyproject(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"./pyproject.toml cannot be read: {error}") from None
    found: object = table
    for name in ("tool", "archibald-pgq", "app"):
        found = found.get(name) if isinstance(found, dict) else ()
        if found is None:
            return None
    if not isinstance(found, str):
        raise ConfigError('[tool.archibald-pgq] app in ./pyproject.toml must be a text such as "shop.tasks:app"')
    return found


async def _serve(app: Archibald, target: Target) -> int:
    from archibald_pgq.runtime.heartbeat import EXIT_FENCED  # no other command needs a worker's parts

    app.use(target)
    worker = await app.worker()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.request_stop)
    # Not through the loop: it would run after what was ready in the loop when the process was stopped, which may be a handler's code.
    signal.signal(signal.SIGCONT, lambda _number, _frame: worker.continued())
    code = await worker.run()
    if code == EXIT_FENCED or len(asyncio.all_tasks()) > 1:
        _exit_now(code)  # asyncio.run would wait for handlers that do not end, and for a server that does not answer
    await app.close()
    return code


def _exit_now(code: int) -> NoReturn:
    logging.shutdown()
    os._exit(code)
