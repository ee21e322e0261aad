"""The notebooks run from top to bottom, in a folder of their own."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import Command
from fedgraft.common.base.files import CONFIGS

NOTEBOOKS = sorted((CONFIGS / "notebooks").glob("*.ipynb"))


def carried_out(source: Path, folder: Path) -> list[str]:
    """What the cells have printed or shown, one text for each."""
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    said = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            said.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    if source.stem == "chest_xrays" and "FEDGRAFT_REAL_DATA" not in os.environ:
        pytest.skip("$FEDGRAFT_REAL_DATA is not set")
    said = "\n".join(carried_out(source, tmp_path))
    wanted = {
        "own_images": ("<Run runs/spots: completed, 2 of 2 sites>", "report.html"),
        "chest_xrays": ("guangzhou_b", "one seed", "compare.html"),
        "privacy": ("3000 patients: epsilon", "for 2 rounds", "holds"),
    }[source.stem]
    assert [words for words in wanted if words not in said] == [], said


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_printed(source: Path) -> None:
    notebook = nbformat.read(source, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_who_has_only_the_package_gets_a_notebook(command: Command) -> None:
    """Whole, and once: what somebody has worked on stays as it is."""
    code, out, err = command("init", "--notebook", "own_images", "--out", "mine")
    assert code == 0, err
    place = Path("mine/own_images.ipynb")
    assert str(place) in out + err
    assert nbformat.read(place, as_version=4) == nbformat.read(CONFIGS / "notebooks/own_images.ipynb", as_version=4)
    place.write_text("worked on")
    for words, said in (
        (("--notebook", "own_images", "--out", "mine"), "exists, and is not overwritten"),
        (("--notebook", "own_image"), "did you mean own_images?"),
        (("mine", "--notebook", "own_images"), "Both a folder and --notebook"),
        ((), "No folder with data is given"),
    ):
        code, _, err = command("init", *words)
        assert (code, said in " ".join(err.split())) == (2, True), err
    assert place.read_text() == "worked on"


def test_all_notebooks_are_named_where_one_is_chosen(command: Command) -> None:
    said = " ".join(command("init", "--help")[1].split())
    assert [path.stem for path in NOTEBOOKS if path.stem not in said] == []
