"""The dossier of a run: its figures are the report's, and what the run does not show is named and not said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from conftest import Command
from fedgraft.common.base.files import read_json
from fedgraft.server.dossier.document import Chapter, Dossier, Fact, Missing, Section, as_markdown, table
from fedgraft.server.dossier.evidence import Evidence
from fedgraft.server.dossier.write import as_html, dossier_of
from fedgraft.server.report.figures import site_metrics
from fedgraft.server.report.history import read_run
from helpers.simulated import simulate
from helpers.tables import sgd, study, tables

STAGE = {"name": "train", "local": sgd(), "aggregate": {"kind": "mean"}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites that trained without noise; east has handed on its passport."""
    from fedgraft.client.cli.evidence_commands import write_passport
    from fedgraft.server.runs.passports import collect_passport

    root = tmp_path_factory.mktemp("dossier")
    run = simulate(study(STAGE), tables(root / "data"), root / "run")
    write_passport(run / "sites" / "east", run, root / "east.json")
    collect_passport(run, root / "east.json", None)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def change(run: Path, **parts: object) -> None:
    result = read_json(run / "result.json")
    (run / "result.json").write_text(json.dumps(result | parts))


def texts(run: Path) -> tuple[str, str]:
    """The dossier as text, what is missing apart from all that is said."""
    dossier = dossier_of(Evidence.of(run))
    said = [
        block.text if isinstance(block, Fact) else " ".join(cell for line in block.rows for cell in line.cells)
        for chapter in dossier.chapters
        for section in chapter.sections
        for block in section.blocks
        if not isinstance(block, Missing)
    ]
    return "\n".join(said), "\n".join(text for _, _, text in dossier.missing())


def test_figures_are_those_of_the_report_and_both_forms_hold_all_of_it(run: Path, command: Command) -> None:
    code, out, err = command("dossier", run)
    assert code == 0, err
    page, plain = (Path(line).read_text() for line in out.split())
    cells = {cell for line in site_metrics(read_run(run), "cls").rows for cell in line.cells if cell}
    assert len(cells) > 10
    for cell in cells:
        assert cell in page
        assert cell.replace("\n", "<br>") in plain
    for digest in (read_json(run / "model.json")["sha256"], read_json(run / "result.json")["study_digest"]):
        assert digest in page
        assert digest in plain
    headings = re.findall(r"<h[23][^>]*>([^<]+)", page)
    assert headings[1:] == re.findall(r"^#{2,3} (.+)$", plain, re.MULTILINE)[1:]
    assert "://" not in page  # it needs no network


def test_what_was_handed_on_is_shown_and_who_did_not_is_missing(run: Path) -> None:
    said, missing = texts(run)
    assert "east signed its passport" in said
    assert "No passport of north, west was collected" in missing
    assert "east made no audit" in missing
    assert "no sign of members" not in said
    assert "No site worked with differential privacy." in said
    assert "Without noise something left east, north, west" in said


def test_what_a_run_does_not_show_is_not_said(run: Path) -> None:
    shutil.rmtree(run / "passports")
    full, _ = texts(run)
    recorded = read_json(run / "result.json")["metrics"]["cls"]["pooled"]["auroc"]
    assert f"{recorded:.3f}" in full
    change(run, metrics={}, sums={}, operating_points={}, privacy={}, privacy_overall=None, status="incomplete")
    rows = [json.loads(line) | {"metrics": {}} for line in (run / "history.jsonl").read_text().splitlines()]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said, missing = texts(run)
    assert f"{recorded:.3f}" not in said
    assert "differential privacy" not in said
    assert "signed" not in said
    assert "The run is incomplete" in said
    assert "The run has no figures on test cases" in missing
    assert "does not say what the study cost" in missing
    assert "No passport of east, north, west" in missing


def test_a_passport_that_was_changed_stops_the_dossier(run: Path, command: Command) -> None:
    path = run / "passports" / "east.json"
    path.write_text(path.read_text().replace('"messages": ', '"messages": 1'))
    code, _, err = command("dossier", run)
    assert code == 2
    assert "part egress was changed" in err
    assert not (run / "dossier").exists()


def test_of_an_unfinished_run_there_is_none(run: Path, command: Command) -> None:
    (run / "result.json").unlink()
    code, _, err = command("dossier", run)
    assert code == 2
    assert "has not finished" in err


def test_names_are_never_markup() -> None:
    odd = "a|b\n<script>x</script> [c](d) *e*"
    one = Chapter("one", "", (Section("s", (Fact(odd), Missing(odd), table((odd,), ((odd,),)))),))
    dossier = Dossier(odd, (), (one,))
    assert "<script>" not in as_html(dossier)
    plain = as_markdown(dossier)
    assert "<script>" not in plain
    assert re.search(r"(?<!\\)[*\[]", plain.replace("**Missing.**", "").replace("**one**", "")) is None
    assert [line.count("|") - line.count("\\|") for line in plain.splitlines() if line.startswith("|")] == [2, 2, 2]
