"""The Python environment of the scripts beside it, made by `scripts/setup --tests`."""

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def enter() -> None:
    """Goes on in the environment: starts the running script again with its Python."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
    python = Path(os.environ.get("TEMPERD_TEST_PYTHON") or target / "venv" / "bin" / "python")
    if Path(sys.prefix) == python.parent.parent:
        return
    if not python.exists():
        sys.exit(f"{python} does not exist: run scripts/setup --tests")
    os.execv(python, [str(python), *sys.argv])
