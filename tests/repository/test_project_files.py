"""README, changelog, citation and guides agree with the code: versions, renamed keys, rooms, and paths they name."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from fedgraft.common.config.renamed import KEYS, VALUES

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
FOLDERS = "common|client|server|simulations|configs|tests|benchmarks|docs|deploy"


def renamed(heading: str) -> dict[str, str]:
    """The table of the changelog under that heading: the first word in backticks of either cell."""
    table = CHANGELOG.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)`[^|]*\| `(\w+)`", table, re.MULTILINE))


def test_the_changelog_has_every_renamed_key() -> None:
    assert renamed("old key | new key") == dict(KEYS)


def test_the_changelog_has_every_renamed_value() -> None:
    assert renamed("old value | new value") == dict(VALUES)


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## \[(\d.*?)\]", CHANGELOG, re.MULTILINE)[0] == version


def test_the_guide_for_contributors_lists_every_room() -> None:
    packages = ("common", "client", "server", "simulations")
    modules = [path for package in packages for path in (ROOT / package).rglob("*.py") if path.stem != "__init__"]
    rooms = {str(path.parent.relative_to(ROOT)) for path in modules}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert sorted(room for room in rooms if f"`{room}`" not in text) == []


def test_no_two_classes_share_a_name() -> None:
    files = [
        path for package in ("common", "client", "server", "simulations") for path in (ROOT / package).rglob("*.py")
    ]
    found: dict[str, list[str]] = {}
    for path in files:
        for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_no_room_is_crowded_and_no_file_long() -> None:
    """A folder can be taken in at a glance, and a file read in one go."""
    files = [
        path for package in ("common", "client", "server", "simulations") for path in (ROOT / package).rglob("*.py")
    ]
    files += (ROOT / "src" / "fedgraft").glob("*.py")
    rooms = Counter(path.parent for path in files)
    assert {str(room.relative_to(ROOT)): count for room, count in rooms.items() if count > 12} == {}
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > 320} == {}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_in_a_text_exists(text: Path) -> None:
    named = re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/-]+(?:\.\w+)?)", text.read_text(encoding="utf-8"))
    assert sorted({path for path in named if not (ROOT / path).exists()}) == []
