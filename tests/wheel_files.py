"""`git ls-files -z … | wheel_files.py WHEEL`: the wheel holds exactly the package, the migrations and the example of the checkout.

By rule instead of by a list: whatever is added to those folders must arrive, and nothing else may.
"""

import sys
import zipfile
from pathlib import Path

# Where a folder or file of the checkout lies in the wheel.
PLACES = {
    "archibald_pgq/": "archibald_pgq/",
    "migrations/": "archibald_pgq/migrations/",
    "examples/erp/": "archibald_pgq/examples/erp/",
    "alembic.ini": "archibald_pgq/alembic.ini",
}
# What every build backend adds beside the package.
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def wanted(files: list[str]) -> dict[str, Path]:
    """Return the names that must be in the wheel, and the files that they are."""
    return {
        place + file.removeprefix(source): Path(file)
        for file in files
        for source, place in PLACES.items()
        if file.startswith(source) and Path(file).is_file()  # a file that was just removed is still in git's index
    }


def main() -> None:
    """Compare, and exit with what differs."""
    expected = wanted(sys.stdin.read().rstrip("\0").split("\0"))
    problems = []
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        problems += [f"lacks {name}" for name in sorted(expected.keys() - found)]
        problems += [f"holds {name}, which is not in the checkout" for name in sorted(found - expected.keys())]
        problems += [
            f"holds another {name}"
            for name in sorted(expected.keys() & found)
            if wheel.read(name) != expected[name].read_bytes()
        ]
        metadata = {name.split(".dist-info/")[1] for name in wheel.namelist() if ".dist-info/" in name}
        if metadata != METADATA:
            problems.append(f"has other metadata than expected: {sorted(metadata ^ METADATA)}")
    if "archibald_pgq/py.typed" not in expected:
        problems.append("has no py.typed")
    if problems:
        sys.exit("\n".join(f".ci/wheel: the wheel {problem}" for problem in problems))


if __name__ == "__main__":
    main()
