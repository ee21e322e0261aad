"""All pages in a real browser, wide and narrow, light and dark: what is there can be read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.common.metrics.sums.task_metrics import TaskSums, sums_of
from fedgraft.common.study.operating import OperatingRule
from fedgraft.common.study.study import Study, parse_study
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.report import build_comparison_page, build_report
from fedgraft.server.report.page import write_audit_page
from fedgraft.server.rounds.scores import Scores
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.web import Page
from fedgraft.simulations.compare.measures.answers import MERGED, Answers
from fedgraft.simulations.compare.question import BUILT_IN, Question
from fedgraft.simulations.compare.result import Group, answered
from fedgraft.simulations.compare.running.cells import CellOutcome
from helpers.browser import CHROMIUM, Browser
from helpers.live import LiveRun
from helpers.runs import change, write_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

SITES = ("universitaetsklinikum-nordwest-1", "st_elisabeth_kreiskrankenhaus_01", "south", "one")
TASKS: list[dict[str, Any]] = [
    {"name": "diagnosis", "classes": ["adenocarcinoma_in_situ", "squamous_cell_carcinoma", "none", "other"]},
    {"name": "malignancy", "classes": ["benign", "malignant"]},
    {"name": "signs", "kind": "multilabel", "labels": ["pleural effusion", "pneumothorax"]},
    {"name": "size_mm", "kind": "regression", "unit": "mm", "mean": 26.0, "std": 16.0},
    {"name": "lesion", "kind": "segmentation"},
]
STAGE = {"name": "train", "local": {"kind": "gradient", "steps": 1}, "share": "all", "aggregate": {"kind": "mean"}}

LAID_OUT = r"""(() => {
  const words = [], faint = [], seen = new Set();
  const linear = (v) => (v <= 10 ? v / 3295 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walk.nextNode()); ) {
    const box = text.parentElement;
    if (box.closest("svg, script, style, pre, noscript") || !box.checkVisibility()) continue;
    if (text.data.trim() && !seen.has(box)) {
      seen.add(box);
      const [one, other] = [parts(getComputedStyle(box).color), ground(box)].map((colour) => light(colour) + 0.05);
      const contrast = Math.max(one, other) / Math.min(one, other);
      if (contrast < 4.5) faint.push(`${text.data.trim().slice(0, 40)}: ${contrast.toFixed(1)}`);
    }
    for (const found of text.data.matchAll(/[^\s\-–—/…_]+/g)) {
      const range = document.createRange();
      range.setStart(text, found.index);
      range.setEnd(text, found.index + found[0].length);
      const lines = [...range.getClientRects()].filter((one) => one.width).map((one) => Math.round(one.top));
      if (new Set(lines).size > 1 && found[0].length <= 40) words.push(found[0]);
    }
  }
  const over = (one) => one.scrollWidth > one.clientWidth + 1;
  return {
    words, faint,
    spills: [...document.querySelectorAll("td, th")].filter(over).map((one) => one.innerText),
    cut: [...document.querySelectorAll(".scroll")].filter(over).map((one) => one.innerText.slice(0, 60)),
    wide: document.documentElement.scrollWidth - innerWidth,
    paper: light(parts(getComputedStyle(document.documentElement).backgroundColor)),
  };
})()"""
"""Words in two lines, text too faint for its ground, cells and tables wider than their place, how much the page is."""


def answers(task: AnyTask, cases: int, rng: np.random.Generator) -> TaskSums:
    if isinstance(task, Segmentation):
        rows = np.stack(
            [np.full(cases, 15.0), np.full(cases, 21.0), np.full(cases, 20.0), rng.random(cases), rng.random(cases)]
        )
        return sums_of(task, rows.T, np.zeros(cases, np.int64))
    if isinstance(task, Regression):
        return sums_of(task, rng.normal(26, 16, cases), rng.normal(26, 16, cases))
    if isinstance(task, Multilabel):
        return sums_of(task, rng.normal(size=(cases, 2)), rng.integers(2, size=(cases, 2)).astype(float))
    return sums_of(task, rng.normal(size=(cases, task.outputs)), rng.integers(task.outputs, size=cases))


def a_study(**evaluate: Any) -> Study:
    asked = {"operating_point": "youden"} | evaluate
    return parse_study({"name": "multi", "tasks": TASKS, "plan": [STAGE], "evaluate": asked}, "x")


def report(folder: Path) -> Path:
    """Of tasks of all kinds, with long names, a site with too few cases, thresholds, and sites that were missing."""
    study, rng = a_study(), np.random.default_rng(3)
    sums = {site: {t.name: answers(t, 5 if site == "one" else 1200, rng) for t in study.tasks} for site in SITES}
    scores = Scores(study, sums)
    points = scores.operating_points(OperatingRule())

    def edit(result: dict[str, Any]) -> None:
        result |= {"metrics": scores.values(), "sums": scores.sums(), "operating_points": scores.at(points)}
        result["task_classes"] = {task.name: list(task.names) for task in study.tasks}
        result["task_kinds"] = {task.name: task.kind for task in study.tasks}
        spent = {
            "dp": True,
            "epsilon": 7.5,
            "delta": 1e-5,
            "relation": "add or remove",
            "unit": "patient",
            "steps": 120,
        }
        result["privacy"] = {
            site: spent | {"accountant": "PLD", "without_dp": ["standardise_columns"]} for site in SITES
        }

    change(write_run(folder, SITES), "result.json", edit)
    (folder / "audit.json").write_text(json.dumps(AUDIT))
    return build_report(folder)


def finding(name: str, stage: str, claim: str, words: str, *, passed: bool) -> dict[str, Any]:
    told = {"name": name, "stage": stage, "claim": claim, "words": words, "passed": passed}
    return told | {"sense": "at most", "bound": 8.0, "seconds": 12.0}


AUDIT = {
    "study": "multi",
    "holds": False,
    "patients": 120,
    "seconds": 31.0,
    "findings": [
        finding("reconstruction", "finetune", "no image comes back", "the nearest correlates by .21", passed=True),
        finding("membership", "standardise_columns", "epsilon is at most 8", "9.31 was measured", passed=False),
    ],
}


def audit(folder: Path) -> Path:
    folder.mkdir()
    (folder / "audit.json").write_text(json.dumps(AUDIT))
    return write_audit_page(folder)


def comparison(folder: Path) -> Path:
    """Of arms with long names and plans, over sites of which one has too few cases."""
    data = {"name": "multi", "tasks": TASKS[:1], "input": {"kind": "image", "size": 32}, "method": "fedprox"}
    study = parse_study(data, "x")
    names = ("study", "gradual_unfreezing", "local_finetuning", "moment_alignment", "local")
    question = Question(arms=tuple(BUILT_IN[name] for name in names), asks="Does it help?")
    rng, groups = np.random.default_rng(0), []
    targets = {site: np.arange(8 if site == "one" else 120) % 4 for site in SITES}
    for arm in question.arms:
        found = {
            site: {"diagnosis": Answers(rng.normal(size=(len(own), 4)), own, np.arange(len(own)))}
            for site, own in targets.items()
        }
        models = dict.fromkeys(SITES, found) if arm.who == "alone" else {MERGED: found}
        outcomes = {(seed, 0): CellOutcome(models, ("south: too few cases",), 61.0) for seed in (0, 1)}
        groups.append(Group(arm.name, None, outcomes, arm.apply(study, "x")))
    folder.mkdir()
    found = {"study": "multi", "synthetic": True, "seeds": 2, "seconds": 61.0, "quick": False}
    (folder / "compare.json").write_text(json.dumps(found | {"questions": [answered(question, groups)]}))
    return build_comparison_page(folder)


@contextmanager
def live(folder: Path, study: Study) -> Iterator[str]:
    """While a run is under way, with a site that is missing, one with too few cases, and tasks of all kinds."""
    run, rng = LiveRun(folder, folder.with_name("source"), study), np.random.default_rng(1)
    sums = {site: {t.name: answers(t, 5 if site == "one" else 60, rng) for t in study.tasks} for site in SITES}
    run.begin()
    run.event("greeted", sites=list(SITES), absent={"absent_hospital_with_a_long_name": "not_approved"})
    for exchange in (1, 2):
        run.start(exchange)
        run.done(
            exchange, sites_asked=list(SITES), metrics=Scores(study, sums).values(), missing={SITES[0]: "deadline"}
        )
    with Page(Board(ServerHome(folder / "none"), folder), "127.0.0.1", 0) as page:
        thread = threading.Thread(target=page.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield page.url
        finally:
            page.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser"), "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") as one:
        yield one


def look(browser: Browser, width: int, scheme: str) -> dict[str, Any]:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    return dict(browser.evaluate(LAID_OUT))


def assert_readable(browser: Browser) -> None:
    for scheme in ("light", "dark"):
        wide, narrow = look(browser, 1400, scheme), look(browser, 400, scheme)
        assert wide["cut"] == [], "a column is cut at 1400 px"
        for found, width in ((wide, 1400), (narrow, 400)):
            assert found["words"] == [], f"words in two lines at {width} px"
            assert found["spills"] == [], f"cells that run into the next at {width} px"
            assert found["wide"] <= 0, f"the page is wider than {width} px"
            assert found["faint"] == [], f"too faint in the {scheme}"
            assert (found["paper"] < 0.1) == (scheme == "dark")


@pytest.mark.parametrize("made", [report, audit, comparison])
def test_a_page_can_be_read_wide_and_narrow_in_the_light_and_in_the_dark(made: Any, browser: Browser, tmp_path: Path):
    browser.open(made(tmp_path / "run").as_uri())
    assert_readable(browser)


def test_so_can_the_live_page_which_shows_tasks_of_all_kinds(browser: Browser, tmp_path: Path) -> None:
    with live(tmp_path / "run", a_study()) as url:
        browser.open(url)
        browser.until("document.querySelectorAll('#rounds tr').length === 2")
        assert_readable(browser)
        assert browser.evaluate("document.querySelectorAll('#charts figure').length") == len(TASKS)
        sites, rounds = browser.text("#sites"), browser.text("#rounds")
        assert "diagnosis too few to say, malignancy too few to say" in sites
        for words in ("size_mm MAE (mm)", "size_mm RMSE (mm)", "lesion Dice", "malignancy AUROC", "not_approved"):
            assert words in sites
        assert "size_mm MAE (mm)" in rounds
        assert f"{SITES[0]}: deadline" in rounds


def test_the_live_page_follows_the_headline_that_the_study_names(browser: Browser, tmp_path: Path) -> None:
    """Whatever it is, with what stands beside it; R² may be below 0, and is drawn there."""
    with live(tmp_path / "run", a_study(headline={"size_mm": "r2", "diagnosis": "accuracy"})) as url:
        browser.open(url)
        browser.until("document.querySelectorAll('#rounds tr').length === 2")
        rounds, charts = browser.text("#rounds"), browser.text("#charts")
        for words in ("size_mm R² ", "diagnosis accuracy ", "malignancy AUROC"):
            assert words in rounds
        assert "size_mm: mean R² over the sites" in charts
        assert "size_mm MAE (mm)" in browser.text("#sites"), "beside it"
        marks = "[...document.querySelectorAll('#charts circle')].map((one) => Number(one.getAttribute('cy')))"
        assert all(0 <= height <= 200 for height in browser.evaluate(marks))
