"""Random faults find it when a promise is broken: each mutant of `tests/chaos/mutants.py` is seen by the checker, for the right reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.acceptance.faults import CHECKOUT
from tests.chaos.mutants import MUTANTS

SEEDS = (1, 2, 3)


@pytest.mark.long
@pytest.mark.timeout(len(SEEDS) * 90)
@pytest.mark.parametrize("name", MUTANTS)
def test_random_faults_find_a_broken_promise(name: str) -> None:
    said: list[str] = []
    for seed in SEEDS:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.chaos", "--json", "--mutant", name, "--seconds", "40", "--seed", str(seed)],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
        result = json.loads(ran.stdout)
        assert ran.returncode == bool(result["violations"]), ran.stderr
        shutil.rmtree(result["folder"], ignore_errors=True)
        said += result["violations"]
        if any(MUTANTS[name].says in sentence for sentence in said):
            return
    raise AssertionError(f"{len(SEEDS)} runs did not say {MUTANTS[name].says!r}, but {said}")


def test_a_mutant_that_does_not_exist_is_refused_in_a_sentence() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--mutant", "none"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "there is no none" in ran.stderr
    assert "Traceback" not in ran.stderr
