"""The notebooks run from top to bottom, in a folder of their own."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[4] / "examples/notebooks").glob("*.ipynb"))


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
