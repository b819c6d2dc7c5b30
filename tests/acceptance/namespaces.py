"""Two network namespaces with a cable between them, which a test can cut in one direction, in both, or make lossy.

Owns: the namespaces, removed at the end. Guarantees: nothing outside of the two is changed; what is started `within` one stays in it.
Needs root, Debian's iproute2 and iptables. Loss is made by iptables' module `statistic`: not every kernel has netem.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

SERVER, WORKER = "10.213.77.1", "10.213.77.2"

_CLONE_NEWNET = 0x40000000


class Cable:
    """The server's namespace and the worker's."""

    def __init__(self) -> None:
        self.server, self.worker = (f"archibald-{os.getpid()}-{end}" for end in "sw")

    def cut(self, *, to_server: bool = False, to_worker: bool = False, loss: float = 1.0) -> None:
        """Lose what goes in a direction, all of it or a part; nobody is told."""
        part = [] if loss == 1.0 else ["-m", "statistic", "--mode", "random", "--probability", str(loss)]
        for wanted, end in ((to_server, self.server), (to_worker, self.worker)):
            if wanted:
                _run("ip", "netns", "exec", end, "iptables", "-w", "-A", "INPUT", "-i", "wire", *part, "-j", "DROP")

    def mend(self) -> None:
        """Everything arrives again."""
        for end in (self.server, self.worker):
            _run("ip", "netns", "exec", end, "iptables", "-w", "-F")


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """Lay it, or skip the test where that is not possible."""
    for program in ("ip", "iptables"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (on Debian: apt install iproute2 iptables)")
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    made = Cable()
    try:
        try:
            for end in (made.server, made.worker):
                _run("ip", "netns", "add", end)
            _run(
                "ip",
                "link",
                "add",
                "wire",
                "netns",
                made.server,
                "type",
                "veth",
                "peer",
                "name",
                "wire",
                "netns",
                made.worker,
            )
            for end, address in ((made.server, SERVER), (made.worker, WORKER)):
                _run("ip", "-n", end, "address", "add", f"{address}/30", "dev", "wire")
                _run("ip", "-n", end, "link", "set", "wire", "up")
                _run("ip", "-n", end, "link", "set", "lo", "up")
            made.cut(to_server=True, to_worker=True, loss=0.01)
            made.mend()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be used here: {error.stderr.strip()}")
        yield made
    finally:
        for end in (made.server, made.worker):
            subprocess.run(["ip", "netns", "delete", end], capture_output=True, check=False)


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Be in a namespace with this thread, so that processes which it starts are too."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as back, open(f"/run/netns/{name}") as there:  # noqa: PTH123
        _enter(libc, there.fileno())
        try:
            yield
        finally:
            _enter(libc, back.fileno())


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network namespace cannot be entered")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
