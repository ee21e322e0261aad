"""What the documents about promises and faults point at exists: every test, and every part that was broken."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PACKAGES = ("common", "client", "server", "simulations")
PROMISES = ("privacy-tests.md", "deploy-tests.md")
FAULTS = "history-of-faults.md"


@cache
def files_named(name: str, *folders: str) -> tuple[Path, ...]:
    """The files of that name anywhere in these folders; a path stands for its last part."""
    wanted = Path(name).name
    return tuple(path for folder in folders for path in (ROOT / folder).rglob(wanted))


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, methods and classes of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))


def column(document: str, heading: str) -> Iterator[tuple[str, list[str]]]:
    """Of every row of every table its first cell, and the words in backticks of the cell under that heading."""
    heads: list[str] = []
    for line in (ROOT / "docs" / document).read_text().splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = []
        elif not heads:
            heads = row
        elif set(line) != set("|-"):
            assert len(row) == len(heads), f"{document}: the row {row[0]} has {len(row)} cells"
            yield row[0], re.findall(r"`([^`]+)`", row[heads.index(heading)])


def rows(heading: str, *documents: str) -> list[object]:
    """The cells under that heading in these documents, as parameters of a test."""
    return [
        pytest.param(words, id=f"{document}: {promise[:60]}")
        for document in documents
        for promise, words in column(document, heading)
    ]


def played() -> list[object]:
    """Of every section of docs/privacy.md that names an adversary, the words in backticks after "Played by"."""
    text = (ROOT / "docs" / "privacy.md").read_text()
    sections = [part for part in text.split("\n## ") if "- **Adversary**" in part]
    return [
        pytest.param(
            re.findall(r"`([^`]+)`", part.partition("- **Played by**")[2].partition("\n- **")[0]),
            id=f"privacy.md: {part.partition(chr(10))[0]}",
        )
        for part in sections
    ]


def is_in(name: str, found: set[str]) -> bool:
    """Whether a test of that name is there; `begins_so_...` stands for all that begin so."""
    if name.endswith("..."):
        return any(test.startswith(f"test_{name.removesuffix('...')}") for test in found)
    return f"test_{name}" in found


@pytest.mark.parametrize("words", rows("Tests", *PROMISES, FAULTS) + played())
def test_a_promise_points_at_tests_that_exist(words: list[str]) -> None:
    assert words
    assert words[0].endswith(".py")
    for word in words:
        if word.endswith(".py"):
            of = word
            paths = files_named(word, "tests", "benchmarks")
            assert paths, f"there is no {word}"
        else:
            found = set().union(*map(names_in, paths))
            assert is_in(word, found), f"{of} has no test {word}"


@pytest.mark.parametrize("words", rows("Seen to fail", *PROMISES))
def test_what_was_broken_is_still_called_so(words: list[str]) -> None:
    """`file.py`, or `file.name` and `file.Class.name`; other words in backticks are no code."""
    for word in words:
        if word.endswith(".py"):
            assert files_named(word, *PACKAGES), f"there is no {word}"
        elif re.fullmatch(r"[a-z_]\w*(\.\w+)+", word):
            module, *names = word.split(".")
            found = set().union(*map(names_in, files_named(f"{module}.py", *PACKAGES)))
            assert set(names) <= found, f"there is no {word}"


def test_there_are_as_many_promises_of_privacy_as_their_document_says() -> None:
    said = re.search(r"promises, P1 to P(\d+)", (ROOT / "docs" / "privacy-tests.md").read_text())
    assert said
    wanted = [f"P{number}" for number in range(1, int(said[1]) + 1)]
    assert [promise for promise, _ in column("privacy-tests.md", "Tests")] == wanted
