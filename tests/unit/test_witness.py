"""What a worker's file proves, and what it does not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from archibald_pgq.runtime import witness
from archibald_pgq.runtime.witness import Witness, proof_of_death
from archibald_pgq.store.workers import Mark

pytestmark = pytest.mark.skipif(
    not Path("/proc/sys/kernel/random/boot_id").exists(), reason="only on Linux a boot has an id"
)


def made() -> Witness:
    found = witness.make()
    assert found is not None
    return found


def died() -> Mark:
    """The mark of a process that ended without a word: its file is there and free."""
    mine = made()
    os.close(mine._descriptor)
    return mine.mark


def test_a_file_is_private_and_gone_after_a_clean_end() -> None:
    mine = made()
    path = Path(mine.mark.path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert proof_of_death(mine.mark) is None  # it lives
    mine.close()
    assert not path.exists()
    assert proof_of_death(mine.mark) is None  # a missing file proves nothing


def test_the_file_of_a_process_that_ended_is_removed_once_that_worker_is_fenced() -> None:
    mark = died()
    for fenced in (False, True):
        death = proof_of_death(mark)
        assert death is not None
        death.bury(fenced=fenced)
        assert Path(mark.path).exists() is not fenced


@pytest.mark.parametrize("changed", [{"boot": "another"}, {"file": "1:1"}, {"path": "/etc/hostname"}])
def test_another_boot_another_file_and_another_name_prove_nothing(changed: dict[str, str]) -> None:
    mark = died()
    try:
        assert proof_of_death(replace(mark, **changed)) is None
    finally:
        Path(mark.path).unlink()


def test_a_child_that_was_forked_with_the_file_keeps_it_locked() -> None:
    mine = made()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(mine._descriptor)
    assert proof_of_death(mine.mark) is None
    os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)
    death = proof_of_death(mine.mark)
    assert death is not None
    death.bury(fenced=True)
