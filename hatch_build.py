"""The package is links to the top-level folders: checks them before a build, and makes those that are missing.

`python hatch_build.py` makes the links. A zip of the project lacks them, and a checkout where git makes none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, where hatchling need not be installed
    BuildHookInterface = object

FOLDERS = ("common", "client", "server", "simulations", "configs")
_HERE = Path(__file__).resolve().parent


def missing(root: Path) -> list[str]:
    """Folders of the package that are not there: no link, a file with the link's text in its place, or empty."""
    folders = {name: root / "src" / "fedgraft" / name for name in FOLDERS}
    return [name for name, folder in folders.items() if not folder.is_dir() or not any(folder.iterdir())]


def make(root: Path) -> None:
    """Link every folder of the package that is not there to the project's. OSError if the system lets nobody."""
    for name in missing(root):
        link = root / "src" / "fedgraft" / name
        if link.is_dir() and not link.is_symlink():
            link.rmdir()
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", "..", name), target_is_directory=True)


class LinksHook(BuildHookInterface):
    """Refuses to build a package of which the half is missing."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Check the links; SystemExit with one line that says what to do."""
        del version, build_data
        if gone := missing(Path(self.root)):
            sys.exit(f"src/fedgraft has no {', '.join(gone)}: run `python hatch_build.py` to make the links.")


if __name__ == "__main__":
    try:
        make(_HERE)
    except OSError as error:
        sys.exit(f"The links cannot be made ({error.strerror}): on Windows, turn on developer mode.")
