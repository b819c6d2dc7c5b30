"""The example ERP as a process: `python -m archibald_pgq.examples.erp.server --port 0 --speed 1`.

`--faults` and `--repeatable-numbers` are for tests of what uses it.

Guarantees: the first line of stdout is the URL; SIGTERM and SIGINT end it with 0; a bad argument or a taken port is one
sentence and exit 2.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

from .site import Site, serving

SLOWEST, FASTEST = 0.01, 1000.0
HIGHEST_PORT = 65535


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; it must be 0 (a free one) to {HIGHEST_PORT}")
    return int(text)


def speed_from(text: str) -> float:
    """Return a speed, or raise ArgumentTypeError."""
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    # Written so that NaN is refused, too.
    if not SLOWEST <= speed <= FASTEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no speed; it must be a number from {SLOWEST:g} to {FASTEST:g}")
    return speed


async def serve(port: int, site: Site) -> None:
    """Print the URL and serve until SIGTERM or SIGINT.

    Raises:
        OSError: the port is taken or not allowed.
    """
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    async with serving(site, port) as url:
        print(url, flush=True)
        await end.wait()


def main() -> int:
    """Run the server; return the exit code."""
    parser = argparse.ArgumentParser(prog="archibald_pgq.examples.erp.server", description="The example ERP.")
    parser.add_argument("--port", type=_port, default=0, help="0 takes a free one (default)")
    parser.add_argument("--speed", type=speed_from, default=1.0, help="2 halves the delays; default 1")
    parser.add_argument("--faults", action="store_true", help="let POST /admin/faults make it go wrong")
    parser.add_argument(
        "--repeatable-numbers", action="store_true", help="an order whose number is taken gets the next one"
    )
    given = parser.parse_args()
    site = Site(given.speed, unique_numbers=not given.repeatable_numbers, faults_by_post=given.faults)
    try:
        asyncio.run(serve(given.port, site))
    except OSError as error:
        print(f"the example ERP cannot listen on port {given.port}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
