"""The scenes of `tests/bench` that docs/performance.md names come to their ends; what they measure is for people to judge."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.commands import CHECKOUT, environment

SCENES = {
    "hot_users": "--hot 2 --each 20 --light 3 --few 2 --rounds 1",
    "future_jobs": "--future 500 --each 2 --rounds 1",
    "old_transaction": "--users 5 --each 4 --rounds 1",
    "idle": "--seconds 2",
    "long_run": "--jobs 300 --users 20 --looks 2",
    "daemons": "--daemons 1,2 --users 10 --each 3 --rounds 1",
    "erp_day": "--http --outage 0",
    "erp_kills": "--http --orders 12 --kills 1",
    "backlog": "--sizes 100,300 --first 50 --rounds 1",
}


@pytest.mark.long
@pytest.mark.parametrize("name", SCENES)
def test_a_scene_comes_to_its_end_finds_no_broken_promise_and_prints_json(name: str, empty_database: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{name}", "--json", *SCENES[name].split()],
        cwd=CHECKOUT,
        env=environment(empty_database),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["problems"] == []
    assert len(found["rows"]) > 1


@pytest.mark.slow
def test_a_database_that_cannot_be_used_is_told_in_one_sentence() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.idle"],
        cwd=CHECKOUT,
        env=environment("postgresql://nobody@127.0.0.1:1/nothing"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("the database at 127.0.0.1:1, database nothing cannot be used")
    assert len(ended.stderr.splitlines()) == 1
