"""The place of the bundled examples: in a wheel they lie in this folder, in a checkout in the top-level `examples/`."""

from pathlib import Path

_checkout = Path(__file__).resolve().parents[2] / "examples"
if _checkout.is_dir():
    __path__.append(str(_checkout))
