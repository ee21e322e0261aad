"""The report shows what a run left behind, survives what is absent, and names what is damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.study.study import parse_study
from fedgraft.server.report import build_report
from fedgraft.server.report.figures import site_metrics
from fedgraft.server.report.history import Curves, curves, read_run, spans
from fedgraft.server.report.plots import curve_plot, inks, reliability_plot
from fedgraft.server.report.tables import MEANINGS
from fedgraft.server.rounds.scores import Scores
from helpers.runs import SITES, Page, change, page_of, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report, for tests that only look."""
    run = write_run(tmp_path_factory.mktemp("built") / "run")
    build_report(run)
    return run


def test_the_page_states_the_final_figures(built: Path) -> None:
    final = json.loads((built / "result.json").read_text())["metrics"]["cls"]
    page = Page((built / "report.html").read_text(encoding="utf-8"))
    for value in (
        final["macro"]["auroc"],
        final["macro"]["accuracy"],
        final["worst"]["auroc"],
        final["pooled"]["auroc"],
    ):
        assert f"{value:.3f}" in page.text
    assert "4 of 4 sites at the end" in page.text
    assert "did not answer in time" in page.text
    assert "not clinical benefit" in page.text
    assert page.text.count("1.2 MB") >= 1
    for words in ("truncated 2", "311\u202f044", "gradient: adam", "name: quickstart", "torch", "--engine inprocess"):
        assert words in page.text
    # Four curves, confusion, reliability, a ROC per class, traffic and time.
    assert sum(value == "img" for key, value in page.attributes if key == "role") == 4 + 2 + 3 + 2


def test_the_table_holds_every_site_and_marks_the_worst(run: Path) -> None:
    table = site_metrics(read_run(run), "cls")
    final = json.loads((run / "result.json").read_text())["metrics"]["cls"]
    by_name = {row.cells[0]: row for row in table.rows}
    assert set(SITES) < set(by_name)
    assert [row.cells[0] for row in table.rows if row.kind == "worst"] == [final["worst"]["site"]]
    auroc, loss = table.columns.index("AUROC"), table.columns.index("loss")
    for site in SITES:
        assert by_name[site].cells[auroc] == f"{final['sites'][site]['auroc']:.3f}"
    lowest = by_name["worst of the sites"].cells
    assert lowest[auroc] == f"{min(own['auroc'] for own in final['sites'].values()):.3f}"
    assert lowest[loss] == f"{max(own['loss'] for own in final['sites'].values()):.3f}"
    assert by_name["all cases pooled"].cells[1] == "240"


def test_curves_place_the_model_that_went_out_and_keep_test_apart(run: Path) -> None:
    record = read_run(run)
    drawn = curves(record, "cls", "auroc")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [x for x, _ in drawn.macro] == [0, 1, 2, 3, 4, 5]
    assert drawn.macro[4][1] == pytest.approx(rows[4]["metrics"]["cls"]["macro"]["auroc"])
    assert drawn.test_macro == [(6, pytest.approx(rows[6]["metrics"]["cls"]["macro"]["auroc"]))]
    assert [x for x, _ in drawn.sites["west"]] == [0, 1, 3, 4, 5]
    assert [(span.name, span.first, span.last) for span in spans(record)] == [("probe", 0, 1), ("finetune", 1, 6)]


EVIL = "<script>alert(1)</script>"


def test_names_from_sites_and_studies_are_text(tmp_path: Path) -> None:
    evil = (EVIL, '"><img src=x onerror=alert(1)>', "$\\frac{$", "_hidden", "{{ 7 * 7 }}")
    run = write_run(tmp_path / "run", sites=evil, classes=(EVIL, "$x^$", "</svg><b>"))
    change(run, "result.json", lambda r: r.update(study=EVIL, headline=EVIL, status=EVIL, engine=EVIL))
    (run / "study.yaml").write_text(f"name: {EVIL}\n</details>{EVIL}")
    page = page_of(run)
    assert not {"script", "img", "iframe", "object", "embed", "link"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    for name in evil:
        assert name in page.cells
    assert page.text.count(EVIL) >= 6


def test_nothing_is_loaded_from_elsewhere(built: Path) -> None:
    source = (built / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    links = [value for key, value in page.attributes if key in ("src", "href", "xlink:href", "data", "action")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)
    assert not re.search(r"@import|url\((?!#)", source)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def test_ids_are_unique_among_figures_that_refer_to_them(built: Path) -> None:
    source = (built / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\sid="([^"]+)"', source)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', source))
    assert used
    assert used <= set(ids)


def test_the_same_run_gives_the_same_page(small: Path) -> None:
    assert build_report(small).read_bytes() == build_report(small).read_bytes()


OPTIONAL = ("plan", "metrics", "sums", "sites", "bytes", "seconds", "refusals", "task_classes", "headline")
ODD: dict[str, Any] = {
    "null": None,
    "text": "?",
    "list": [1, None, {"a": []}],
    "nested": {"cls": {"a": [], "sites": 3}},
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ("east", "north"), ("no", "yes"), (("train", 2),))


@pytest.mark.parametrize(
    "keys",
    [
        ("sums",),
        ("metrics",),
        ("plan", "task_classes"),
        ("sites", "bytes", "refusals"),
        ("seconds", "headline"),
        (*OPTIONAL, "study", "status", "engine", "privacy"),
    ],
)
def test_absent_fields_are_left_out(small: Path, keys: tuple[str, ...]) -> None:
    change(small, "result.json", lambda r: [r.pop(key) for key in keys])
    page = page_of(small)
    assert ("quickstart" if "study" not in keys else "run") in page.text
    assert "How to repeat it" in page.text


@pytest.mark.parametrize("how", ODD)
def test_odd_fields_are_left_out(small: Path, how: str) -> None:
    change(small, "result.json", lambda r: r.update(dict.fromkeys(set(OPTIONAL) - {"sums"}, ODD[how])))
    page = page_of(small)
    assert "quickstart" in page.text
    assert "share correct" in page.text
    change(small, "result.json", lambda r: r.update(dict.fromkeys(r.keys() - {"study"}, ODD[how])))
    assert "quickstart" in page_of(small).text


def test_absent_and_unknown_fields_of_the_history_are_left_out(small: Path) -> None:
    rows = [json.loads(line) for line in (small / "history.jsonl").read_text().splitlines()]
    for keys in (("exchange", "split"), ("stage", "stage_index", "missing"), ("bytes_up", "train", "metrics")):
        rows = [{"later": {"new": 1}} | {key: row[key] for key in row if key not in keys} for row in rows]
        (small / "history.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert "quickstart" in page_of(small).text


def test_a_run_that_has_not_finished_shows_how_far_it_got(run: Path) -> None:
    for name in ("result.json", "environment.json", "study.yaml"):
        (run / name).unlink()
    lines = (run / "history.jsonl").read_text().splitlines()
    (run / "history.jsonl").write_text("\n".join(lines[:4]) + "\n")
    page = page_of(run)
    assert "Unfinished" in page.text
    assert "did not answer in time" in page.text
    assert "img" in [value for key, value in page.attributes if key == "role"]
    (run / "history.jsonl").write_text("")
    assert "Unfinished" in page_of(run).text


@pytest.mark.parametrize("line", ['{"exchange": 3', "[1]", "\x00\xff", "[" * 100_000])
def test_a_damaged_history_is_named_by_file_and_line(run: Path, line: str) -> None:
    lines = (run / "history.jsonl").read_text().splitlines()
    lines[2] = line
    (run / "history.jsonl").write_text("\n".join(lines), encoding="latin-1")
    with pytest.raises(InputError, match=r"history\.jsonl, line 3: "):
        build_report(run)
    assert not (run / "report.html").exists()


def test_damaged_results_are_named(run: Path) -> None:
    change(run, "result.json", lambda r: r["sums"]["cls"]["sites"]["north"].update(loss=[-1]))
    with pytest.raises(InputError, match=r"result\.json: sums of cls, north: "):
        build_report(run)
    (run / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json: is not valid JSON"):
        build_report(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run's folder"):
        build_report(tmp_path)


@pytest.mark.parametrize(("sites", "classes"), [(1, 2), (64, 2), (12, 16)])
def test_few_and_many_sites(tmp_path: Path, sites: int, classes: int) -> None:
    names = tuple(f"site-{number:02d}" for number in range(sites))
    run = write_run(tmp_path / "run", names, tuple(f"class {k}" for k in range(classes)), (("train", 2),))
    page = page_of(run)
    assert all(name in page.cells for name in names)
    legend = Page((run / "report.html").read_text(encoding="utf-8").split('<ul class="legend">')[1].split("</ul>")[0])
    assert legend.tags.count("li") == min(sites, 3) + 1
    assert ("the other" in legend.text) == (sites > 10)
    assert ("first 6 of 16 classes" in page.text) == (classes == 16)
    assert (run / "report.html").stat().st_size < 1_500_000


def test_among_many_sites_only_the_best_and_the_worst_have_a_colour() -> None:
    ink = inks({f"s{n:02d}": None if n == 5 else n / 20 for n in range(20)})
    colours = [own.colour for own in ink.values()]
    assert ink["s00"].colour != ink["s19"].colour
    assert all(colours.count(ink[site].colour) == 1 for site in ("s00", "s19"))
    assert len(set(colours)) == 3
    few = inks({f"s{n}": None for n in range(10)})
    assert len({(own.colour, own.dash) for own in few.values()}) == 10


def test_every_code_has_words() -> None:
    assert set(MEANINGS) == set(Code)


def test_beside_each_figure_stands_what_it_rests_on(tmp_path: Path) -> None:
    """Positives, negatives, intervals, both means over sites; and "too few to say" where a site has few."""
    study = parse_study({"name": "x", "tasks": [{"name": "cls", "classes": ["no", "yes"]}], "method": "fedavg"}, "here")
    sums = {site: {"cls": a_site(positives)} for site, positives in zip(SITES, (40, 3, 25, 30), strict=True)}
    scores = Scores(study, sums)
    told = scores.values()["cls"]
    run = write_run(tmp_path / "run", classes=("no", "yes"))
    change(run, "result.json", lambda r: r.update(metrics={"cls": told}, sums=scores.sums()))
    by_name = {row.cells[0]: row.cells for row in site_metrics(read_run(run), "cls").rows}
    low, high = told["intervals"]["sites"]["east"]["auroc"]
    assert by_name["east"][1:3] == ("90\n40 + 50 −", f"{told['sites']['east']['auroc']:.3f}\n{low:.3f} to {high:.3f}")
    assert by_name["north"][1:4] == ("53\n3 + 50 −", "too few to say", "–")
    for name, key in (("macro mean of sites", "macro_intervals"), ("macro mean, by precision", "macro_by_precision")):
        mean = told[key]["auroc"]
        assert by_name[name][2] == f"{mean['value']:.3f}\n{mean['low']:.3f} to {mean['high']:.3f}"
    page = page_of(run)
    assert "mean of 3 sites, each alike; 1 with too few to say" in page.text
    assert "north (53 test cases, too few to say)" in page.text
    assert "all cases: 98 + 200 −" in page.text
    assert re.search(r"rounds trained \([\d,]+ validation, [\d,]+ test cases\)", page.text)


def a_site(positives: int) -> ClassificationSums:
    rng = np.random.default_rng(positives)
    truth = np.repeat([1, 0], [positives, 50])
    score = rng.normal(size=len(truth)) + truth
    return ClassificationSums.of(np.stack([np.zeros(len(truth)), score], axis=1), truth)


def test_reliability_of_few_cases_is_hollow() -> None:
    """Of nine bins of sure answers, and one of three cases: one point is drawn white inside."""
    sure = np.concatenate([np.full(30, 3.0), np.full(3, 0.6)])
    sums = ClassificationSums.of(np.stack([np.zeros(33), sure], axis=1), np.ones(33, int))
    drawn = reliability_plot(sums)
    assert "fewer than 10" in drawn
    assert "10 cases or more" in drawn
    assert drawn.count("fill: #ffffff; stroke: #0072b2") == 2, "the point, and its key"
    many = reliability_plot(ClassificationSums.of(np.stack([np.zeros(30), sure[:30]], axis=1), np.ones(30, int)))
    assert "fewer than 10" not in many


@pytest.mark.slow
def test_it_is_told_how_to_repeat_it_with_what_there_is(run: Path) -> None:
    """No word stands for a file that the reader has to find."""
    page = page_of(run)
    assert (
        "fedgraft simulate run/study.yaml --scenario run/scenario.yaml --engine inprocess --out run-again" in page.text
    )
    (run / "scenario.yaml").unlink()
    assert "SCENARIO" not in page_of(run).text
    change(run, "result.json", lambda r: r.update(engine="deployed"))
    page = page_of(run)
    assert "fedgraft server run run/study.yaml --out run-again" in page.text
    assert "simulate" not in page.text.partition("How to repeat it")[2].partition("Made with")[0]


@pytest.mark.slow
def test_missing_sites_are_an_alarm(run: Path) -> None:
    assert "1 answer did not come on the way; all sites were there at the end" in page_of(run).text
    last = {"exchange": 7, "stage": "evaluate", "round": 1, "site": "west", "code": "deadline"}
    change(run, "result.json", lambda r: r.update(refusals=[last]))
    page = page_of(run)
    assert ("role", "alert") in page.attributes
    assert "Sites are missing. Not there at the end: west." in page.text
    change(run, "result.json", lambda r: r.update(refusals=[]))
    assert ("role", "alert") not in page_of(run).attributes


def test_curves_of_shares_end_at_one_and_begin_at_a_half_or_below() -> None:
    """Differences of a thousandth, zoomed in on, would look like progress."""
    flat = Curves({"east": [(0, 0.901), (1, 0.902)]}, [(0, 0.901), (1, 0.902)], {}, [])
    ticks = re.findall(r">(\d\.\d+)</text>", curve_plot("AUROC", flat, {}, ()))
    assert {"0.5", "1.0"} <= set(ticks)
    low = Curves({}, [(0, 0.2), (1, 0.4)], {}, [])
    assert "0.2" in re.findall(r">(\d\.\d+)</text>", curve_plot("accuracy", low, {}, ()))
