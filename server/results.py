"""What a finished run leaves behind: the result, the merged model with its manifest, the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from common.inputs import ImageInput
from common.orders import Code
from common.plan import Gradient, Select, Stage, Statistics
from common.study import Study
from common.travel import Tags, changed, releases_plainly, sent
from common.weights import WeightsManifest, save_weights
from server.collect import headline
from server.folder import RunFolder
from server.rounds import Outcome

SCHEMA = 1


def write_result(folder: RunFolder, study: Study, tags: Tags, outcome: Outcome, engine: str, synthetic: bool) -> None:
    """Write `result.json`; the run counts as complete when every site that greeted took part to the end."""
    rows = _history(folder)
    totals, last = outcome.totals, rows[-1]
    missing = {site: Code(code) for site, code in last["missing"].items()} | dict(outcome.absent)
    asked = len(last["sites_asked"]) + len(outcome.absent)
    content = {
        "schema": SCHEMA,
        "fedgraft": fedgraft_version(),
        "status": "incomplete" if missing or totals.refusals else "completed",
        "study": study.name,
        "study_digest": study.digest,
        "synthetic": synthetic,
        "headline": _headline(asked, missing, totals.refusals),
        "plan": plan_table(study, tags, {key: int(value.size) for key, value in outcome.state.items()}, rows),
        "metrics": outcome.scores.values(),
        "sums": outcome.scores.sums(),
        "sites": {
            site: {
                "cases": dict(g.cases),
                "labels": {t: dict(c) for t, c in g.labels.items()},
                "problems": dict(g.problems),
            }
            for site, g in outcome.greetings.items()
        },
        "bytes": {"up": totals.bytes_up, "down": totals.bytes_down},
        "seconds": {phase: round(seconds, 3) for phase, seconds in totals.seconds.items()},
        "refusals": [
            {"exchange": 0, "stage": "hello", "round": 0, "site": site, "code": code.value}
            for site, code in outcome.absent.items()
        ]
        + totals.refusals,
        "privacy": {site: privacy(study, tags, rows, site) for site, g in outcome.greetings.items() if not g.observer},
        "baselines": None,
        "task_classes": {task.name: list(task.classes) for task in study.tasks},
        "engine": engine,
    }
    folder.write("result.json", content)


def privacy(study: Study, tags: Tags, rows: list[dict[str, Any]], site: str) -> dict[str, Any]:
    """What a site says that the study has cost it.

    `without_dp` names the stages that it answered without noise: epsilon says nothing of those.
    """
    spent = [row["spent"][site] for row in rows if site in row.get("spent", {})]
    plain = [stage.name for stage in study.plan if releases_plainly(stage, tags)]
    answered = {row["stage"] for row in rows if site in row["sites_merged"]}
    figures = spent[-1] if spent else {}
    return {"dp": bool(spent), **figures, "without_dp": [name for name in plain if name in answered]}


def _headline(asked: int, missing: Mapping[str, Code], refusals: list[dict[str, Any]]) -> str:
    """Who took part at the end, or, if all did, where somebody was missing on the way."""
    line = headline(asked - len(missing), asked, missing)
    if missing or not refusals:
        return line
    ways = {f"{r['site']}, {r['code']} ({r['stage']}, round {r['round']})" for r in refusals}
    return f"{line} at the end; missing on the way: " + "; ".join(sorted(ways))


def plan_table(
    study: Study, tags: Tags, sizes: Mapping[str, int], rows: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """One row per stage: what is done, trained and shared, in entries counted as numbers, and bytes if known."""
    table = []
    for index, stage in enumerate(study.plan):
        of_stage = [row for row in rows or [] if row["stage_index"] == index and row["stage"] == stage.name]
        table.append(
            {
                "name": stage.name,
                "where": stage.where,
                "local": describe_local(stage),
                "trains": _trains(stage),
                "shares": _name(stage.share),
                "keeps": _name(stage.keep),
                "merge": _merge(stage),
                "rounds": stage.rounds,
                "trained_parameters": sum(sizes[key] for key in changed(stage, tags)),
                "shared_parameters": sum(sizes[key] for key in sent(stage, tags)),
                "bytes_up_per_round": round(sum(r["bytes_up"] for r in of_stage) / len(of_stage)) if of_stage else None,
                "bytes_down_per_round": round(sum(r["bytes_down"] for r in of_stage) / len(of_stage))
                if of_stage
                else None,
            }
        )
    return table


def describe_local(stage: Stage) -> str:
    """A stage's local work in a few words."""
    local = stage.local
    if isinstance(local, Gradient):
        length = f"{local.steps} steps" if local.steps else f"{local.epochs} epoch{'s' * (local.epochs != 1)}"
        return f"gradient: {local.optimiser}, lr {local.lr:g}, {length} of {local.batch_size}"
    if isinstance(local, Statistics):
        return f"sums of {local.of}"
    return "norm statistics from the site's own images"


def _trains(stage: Stage) -> str:
    if isinstance(stage.local, Gradient):
        return _name(stage.local.train)
    return "norm_stats" if not isinstance(stage.local, Statistics) else "none"


def _merge(stage: Stage) -> str:
    merge = stage.merge.model_dump()
    kind = merge.pop("kind")
    return kind if not merge else f"{kind} ({', '.join(f'{key} {value}' for key, value in merge.items())})"


def _name(select: Select) -> str:
    value = select.model_dump()
    return value if isinstance(value, str) else json.dumps(value)


def write_model(
    folder: RunFolder, study: Study, outcome: Outcome, source: WeightsManifest | None, synthetic: bool
) -> None:
    """Write the merged model and its manifest, so that the run's folder serves as weights for the next study."""
    facts = {
        "id": study.name,
        "backbone": study.model.backbone,
        "input": study.input if isinstance(study.input, ImageInput) else None,
        "classes": {task.name: task.classes for task in study.tasks},
        "trained_on": f"study {study.name} over {len(outcome.greetings)} sites",
        "licence": source.licence if source else "not stated",
        "synthetic": synthetic,
        "how": f"study digest {study.digest}, starting from {source.id if source else 'random entries'}",
    }
    save_weights(folder.path, outcome.state, facts)


def fedgraft_version() -> str:
    """The installed version, or "unknown" when run from a bare tree."""
    try:
        return version("fedgraft")
    except PackageNotFoundError:
        return "unknown"


def _history(folder: RunFolder) -> list[dict[str, Any]]:
    lines = (folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
