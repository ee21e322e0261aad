"""A wall that holds up `Exception` alone lets a panic through: extensions in Rust raise one that is none."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
OF_PYTHON_ALONE = {
    "client/preflight/environment.py",
    "client/privacy/dp/gradients/dp_safe.py",
    "common/privacy/accountant.py",
}
"""Files whose walls stand around code without extensions in Rust, at no hospital's work and no stranger's bytes."""


def sources() -> dict[str, str]:
    packages = ("common", "client", "server", "simulations", "src/fedgraft")  # links are not followed
    paths = (path for package in packages for path in (ROOT / package).rglob("*.py"))
    own = (ROOT / "src" / "fedgraft").glob("*.py")
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in (*paths, *own)}


def test_no_wall_is_for_exceptions_alone() -> None:
    found = {name for name, text in sources().items() if re.search(r"except \(?Exception\b", text)}
    assert found <= OF_PYTHON_ALONE


def test_every_whole_wall_lets_a_person_end_the_program() -> None:
    """A bare `except BaseException` would hold Ctrl-C up, unless it raises again."""
    for name, text in sources().items():
        for wall in re.finditer(r"except BaseException\b.*:\n((?: +.*\n)+)", text):
            before = text[: wall.start()].rstrip().splitlines()[-2:]
            assert "ENDS" in "".join(before) or "raise" in wall[1] or name.endswith("decoding/wall.py"), name
