"""The garbage collector, which belongs to the whole process, is left as it was found."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from archibald_pgq.runtime import collector


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    found = gc.get_threshold()
    yield
    gc.set_threshold(*found)
    gc.unfreeze()


def test_it_is_as_it_was_when_the_last_of_several_workers_has_ended_whichever_began_first() -> None:
    gc.set_threshold(600, 9, 8)
    first, second = ExitStack(), ExitStack()
    first.enter_context(collector.less_often())
    second.enter_context(collector.less_often())
    first.close()
    assert gc.get_threshold() == (collector.YOUNG, 9, 8)
    assert gc.get_freeze_count() > collector.FEW
    second.close()
    assert gc.get_threshold() == (600, 9, 8)
    assert gc.get_freeze_count() <= collector.FEW


def test_what_somebody_else_has_frozen_stays_frozen() -> None:
    gc.freeze()
    with collector.less_often():
        pass
    assert gc.get_freeze_count() > collector.FEW


@pytest.mark.parametrize("young", [0, 50_000])
def test_neither_switched_on_nor_made_to_look_more_often(young: int) -> None:
    gc.set_threshold(young, 10, 10)
    with collector.less_often():
        assert gc.get_threshold() == (young, 10, 10)
