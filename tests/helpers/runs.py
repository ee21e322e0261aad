"""Folders of finished runs with figures from real metric sums, and a reader of report pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import reduce
from html.parser import HTMLParser
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.metrics.over_sites import macro_mean, worst
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.metrics.table import OF_CLASSES, TABLE
from fedgraft.server.report import build_report

SITES = ("east", "north", "south", "west")
CLASSES = ("none", "smooth", "ring")
Row = dict[str, Any]


def predictions(rng: np.random.Generator, skill: float, cases: int, classes: int) -> ClassificationSums:
    truth = rng.integers(0, classes, cases)
    return ClassificationSums.of(rng.normal(size=(cases, classes)) + skill * np.eye(classes)[truth], truth)


def metrics(sums: dict[str, ClassificationSums]) -> Row:
    sites = {site: own.values() for site, own in sums.items()}
    lowest = worst(sites, TABLE["auroc"])
    return {
        "sites": sites,
        "pooled": reduce(add, sums.values()).values(),
        "macro": {key: macro_mean(list(sites.values()), key) for key in OF_CLASSES},
        "worst": {"site": lowest[0], "auroc": lowest[1]} if lowest else None,
        "shown": list(OF_CLASSES),
        "facts": {},
    }


def plain(sums: ClassificationSums) -> Row:
    return {key: array.tolist() for key, array in sums.arrays().items()}


def write_run(
    run: Path,
    sites: tuple[str, ...] = SITES,
    classes: tuple[str, ...] = CLASSES,
    stages: tuple[tuple[str, int], ...] = (("probe", 1), ("finetune", 5)),
) -> Path:
    """A run's folder as the coordinator writes it; sites get better with the rounds, each from another start."""
    rng = np.random.default_rng(7)
    run.mkdir(parents=True)
    steps = [(index, name, r + 1, of) for index, (name, of) in enumerate(stages) for r in range(of)]
    skill = {site: rng.uniform(0.2, 1.2) for site in sites}
    count = len(classes)
    rows, refusals = [], []
    for exchange, (index, name, number, of) in enumerate([*steps, (len(stages) - 1, "evaluate", 1, 1)], start=1):
        final = name == "evaluate"
        missing = {sites[-1]: "deadline"} if exchange == 3 and len(sites) > 1 else {}
        present = [site for site in sites if site not in missing]
        grown = 1.6 * (1 - np.exp(-exchange / 3))
        sums = {site: predictions(rng, skill[site] + grown, 60, count) for site in present}
        refusals += [
            {"exchange": exchange, "stage": name, "round": number, "site": s, "code": c} for s, c in missing.items()
        ]
        rows.append(
            {
                "exchange": exchange,
                "stage": name,
                "stage_index": index,
                "round": number,
                "rounds": of,
                "seconds": 1.9,
                "bytes_up": 0 if final else 1_240_000 * len(present),
                "bytes_down": 1_244_000 * len(sites),
                "sites_asked": list(sites),
                "sites_aggregated": present,
                "missing": missing,
                "train": {}
                if final
                else {site: {"loss": 1.1 - 0.3 * grown * skill[site], "examples": 120, "steps": 8} for site in present},
                "evaluated": {"stage": name, "round": number - 1} if exchange > 1 else None,
                "split": "test" if final else "val",
                "metrics": {"cls": metrics(sums)},
            }
        )
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pooled = reduce(add, sums.values())
    result = {
        "schema": 1,
        "fedgraft": "0.1.0",
        "status": "completed" if not refusals else "incomplete",
        "study": "quickstart",
        "study_digest": "9f" * 32,
        "synthetic": True,
        "headline": f"{len(sites)} of {len(sites)} sites at the end; missing on the way: "
        + "; ".join(f"{r['site']}, {r['code']} ({r['stage']}, round {r['round']})" for r in refusals),
        "plan": [
            {
                "name": name,
                "where": "labelled",
                "local": "sums of features" if index == 0 else "gradient: adam, lr 0.001, 2 epochs of 16",
                "trains": "heads" if index == 0 else "all",
                "shares": "heads" if index == 0 else "all",
                "aggregate": "ridge (ridge penalty 0.1)" if index == 0 else "mean",
                "rounds": of,
                "trained_parameters": 516 if index == 0 else 311_044,
                "shared_parameters": 516 if index == 0 else 311_044,
                "bytes_up_per_round": 2064 if index == 0 else 1_244_176,
            }
            for index, (name, of) in enumerate(stages)
        ],
        "metrics": {"cls": rows[-1]["metrics"]["cls"]},
        "sums": {"cls": {"sites": {site: plain(own) for site, own in sums.items()}, "pooled": plain(pooled)}},
        "sites": {
            site: {
                "cases": {"train": 140, "val": 35, "test": 60},
                "labels": {"cls": dict.fromkeys(classes, 140 // count)},
                "problems": {"truncated": 2} if place == 0 else {},
            }
            for place, site in enumerate(sites)
        },
        "bytes": {"up": sum(row["bytes_up"] for row in rows), "down": sum(row["bytes_down"] for row in rows)},
        "seconds": {"prepare": 4.2, "rounds": 11.4, "evaluate": 1.9},
        "refusals": refusals,
        "privacy": {site: {"dp": False} for site in sites},
        "baselines": None,
        "task_classes": {"cls": list(classes)},
        "engine": "inprocess",
    }
    (run / "result.json").write_text(json.dumps(result))
    packages = {"torch": "2.15.0", "numpy": "2.4.6"}
    environment = {
        "python": "3.11.9",
        "packages": packages,
        "device": "cpu",
        "threads": 1,
        "seed": 0,
        "code_digest": "ab12",
    }
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "study.yaml").write_text("name: quickstart\nseed: 0\n")
    (run / "scenario.yaml").write_text("name: four\n")
    return run


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.cells: list[str] = []
        self._open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        self._open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "td" in self._open:
            self.cells[-1] += data


def page_of(run: Path) -> Page:
    return Page(build_report(run).read_text(encoding="utf-8"))


def change(run: Path, name: str, edit: Callable[[Row], object]) -> None:
    content = json.loads((run / name).read_text())
    edit(content)
    (run / name).write_text(json.dumps(content))


def open_to_others(folder: Path) -> list[str]:
    """Files and folders of a run, itself among them, that anybody but their owner may read, write or enter."""
    found = [folder, *folder.rglob("*")]
    return sorted(
        f"{path.relative_to(folder)} {path.stat().st_mode & 0o777:o}"
        for path in found
        if not path.is_symlink() and path.stat().st_mode & 0o777 != (0o700 if path.is_dir() else 0o600)
    )
