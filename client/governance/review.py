"""A study as the people at a site must see it before they approve: what runs, what leaves, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.governance.about_data import data_in_words
from fedgraft.client.governance.verdict import StudyVerdict
from fedgraft.common.checks.explain import plan_table, sentence
from fedgraft.common.checks.leaving import leaving
from fedgraft.common.metrics.sums.class_metrics import CALIBRATION_BINS
from fedgraft.common.models.model import TransferModel
from fedgraft.common.protocol.choosing import rounds_of_choice
from fedgraft.common.protocol.routing import privacy_request
from fedgraft.common.secure_aggregation.masking import FEWEST
from fedgraft.common.study.clusters import ByLoss
from fedgraft.common.study.plan import Gradient, Stage
from fedgraft.common.study.study import Study

_COUNTS = [
    "the site's name in the study",
    "cases in each split",
    "training labels of each class",
    "files left out, by reason",
    "labelled training cases of each task, every round",
]
_CLOSED_COUNTS = [
    "the site's name in the study",
    "whether it has labels, and whether it evaluates",
    "its public number of patients: one coarse number, fixed when it was first needed",
]
_MASKED_COUNTS = ["the site's name in the study", "whether it has labels, and whether it evaluates"]
_ONCE = {
    "noised": "counts of the test cases by class and score, once at the end, noised at the price of metrics_epsilon",
    "suppressed": "counts of the test cases by class and score, once at the end, exact but for those below ten",
}
"""What leaves of metrics where the policy shows them once in a study."""
_SUMS = {
    "multiclass": [
        "confusion matrix",
        "sums of losses and of Brier scores",
        f"calibration in {CALIBRATION_BINS} bins",
        "histograms of scores by class",
    ],
    "multilabel": ["confusion, sums of losses and histograms of scores of each label"],
    "regression": ["number and sums of values and of their squares, sums of errors, absolute and squared"],
    "segmentation": ["numbers of images, findings and pixels, sums of Dice coefficients, distances and losses"],
}
"""What leaves of metrics, by kind of task."""


def review(
    study: Study, model: TransferModel, config: SiteConfig, verdict: StudyVerdict | None, *, approved: bool
) -> dict[str, Any]:
    """All of it as plain values. `model` has the study's shape, whatever its entries; an observer has no verdict."""
    sizes = {key: int(value.numel()) for key, value in model.state_dict().items()}
    exact = verdict is None or verdict.shows_metrics
    secure_aggregation = study.secure_aggregation and verdict is not None
    stages: list[dict[str, Any]] = []
    kinds = {task.kind for task in study.tasks}
    bytes_up, chooses = 0, rounds_of_choice(study, model.tags())
    for at, (stage, row) in enumerate(zip(study.plan, plan_table(study, model.tags(), sizes), strict=True)):
        out = leaving(study, stage, model)
        bytes_up += out.bytes * stage.rounds if verdict else 0
        stages.append(
            {
                "name": stage.name,
                "rounds": stage.rounds,
                "description": sentence(stage, row),
                "leaves": {"entries": out.entries, "numbers": out.numbers, "bytes_per_round": out.bytes},
                "figures": []
                if secure_aggregation
                else [*_figures(stage, exact=exact), *_choice(study, stage, chooses)],
                "policy": _policy(verdict, at),
            }
        )
    return {
        "study": study.name,
        "digest": study.digest,
        "approved": approved,
        "model": study.model.backbone,
        "architectures": list(study.architectures),
        "plugins": list(map(str, study.plugins)),
        "weights": study.model.weights,
        "tasks": {task.name: list(task.names) for task in study.tasks},
        "observer": verdict is None,
        "stages": stages,
        "bytes_up": bytes_up,
        "clusters": study.clusters.description if study.clusters is not None else "",
        "secure_aggregation": _fewest(config) if secure_aggregation else None,
        "secure_aggregation_only": config.policy.secure_aggregation_only,
        "held": config.policy.release == "hold" and verdict is not None,
        "counts": {"what": _counts(exact=exact, masked=secure_aggregation), "exact": exact},
        "metrics": {
            "split": study.evaluate.split,
            "every": study.evaluate.every if study.plan else 0,
            "chosen_on_val": study.evaluate.chosen_on_val,
            "sums": [*(what for kind, own in _SUMS.items() if kind in kinds for what in own), *_of_plugins(study)]
            if exact
            else [],
            "by_subgroup": {one.name: list(one.groups) for one in config.policy.subgroups_of(study)},
            "not_by_subgroup": config.policy.subgroups_withheld(study),
            "once": "" if exact or secure_aggregation else _once(config, study),
        },
        "cost": _cost(config, verdict),
        "refused": verdict.refused if verdict else "",
        "fix": verdict.fix if verdict else "",
    }


def _once(config: SiteConfig, study: Study) -> str:
    """What leaves once; a plug-in's metric adds up what it likes of a case, which is neither noised nor coarse."""
    counts, own = _ONCE.get(config.policy.metrics, ""), ", ".join(study.evaluate.metrics)
    return (
        f"{counts}; nothing of {own}, since a plug-in's metric follows from no such counts"
        if counts and own
        else counts
    )


def _of_plugins(study: Study) -> list[str]:
    return [f"sums of what each case adds to {name}" for name in study.evaluate.metrics]


def _fewest(config: SiteConfig) -> int:
    """The fewest sites over which this one lets a sum be opened."""
    return config.secure_aggregation.fewest if config.secure_aggregation else FEWEST


def _counts(*, exact: bool, masked: bool) -> list[str]:
    if masked:
        return _MASKED_COUNTS
    return _COUNTS if exact else _CLOSED_COUNTS


def _figures(stage: Stage, *, exact: bool) -> list[str]:
    """The figures of training that leave; of private work only those that are public anyway."""
    if privacy_request(stage) is not None:
        return (
            ["steps", "noise_multiplier", "sample_rate"] if isinstance(stage.local, Gradient) else ["noise_multiplier"]
        )
    if not exact:
        return []
    if not isinstance(stage.local, Gradient):
        return ["examples"]
    return ["loss", "steps", "examples"] + (["undone"] if stage.local.rollback is not None else [])


def _choice(study: Study, stage: Stage, chooses: Mapping[str, int]) -> list[str]:
    """What of a choice among models leaves with what was trained."""
    if stage.name not in chooses or not isinstance(study.clusters, ByLoss):
        return []
    return [f"which of {study.clusters.count} models fits its training cases best, {chooses[stage.name]} times"]


def _policy(verdict: StudyVerdict | None, at: int) -> dict[str, Any]:
    if verdict is None:
        return {"kind": "silent"}
    stage = verdict.stages[at]
    found: dict[str, Any] = {"kind": stage.kind, "refused": stage.refused}
    if stage.privacy is not None:
        found |= {
            "noise_multiplier": stage.privacy.noise_multiplier,
            "max_grad_norm": stage.privacy.max_grad_norm,
            "sample_rate": stage.privacy.sample_rate,
        }
        found |= {"steps": stage.privacy.steps, "unit": stage.privacy.unit, "epsilon": stage.epsilon}
    return found


def _cost(config: SiteConfig, verdict: StudyVerdict | None) -> dict[str, Any] | None:
    if verdict is None or not verdict.cost.stages:
        return None
    privacy = next((stage.privacy for stage in verdict.stages if stage.privacy is not None), None)
    return {
        "epsilon": verdict.cost.epsilon,
        "epsilon_after": verdict.cost.total_after,
        "metrics": verdict.cost.metrics,
        "delta": verdict.cost.delta,
        "unit": privacy.unit if privacy is not None else config.policy.unit,
        "patients": verdict.patients,
        "epsilon_per_study": config.policy.epsilon_per_study,
        "epsilon_lifetime": config.policy.epsilon_lifetime,
    }


def in_words(content: dict[str, Any]) -> list[str]:
    """The review as lines that `site review` prints: what runs, what leaves, what it costs."""
    state = "approved here" if content["approved"] else "not approved here"
    if content["approved"] and (gone := content.get("approver_removed")):
        state += f" by {gone['name']}, who was removed on {gone['since']}"
    start = content["weights"] or "random entries"
    tasks = "; ".join(f"{task} ({', '.join(classes)})" for task, classes in content["tasks"].items())
    code = " and ".join(["fedgraft", *content["plugins"]]).replace("fedgraft and ", "fedgraft, and ")
    lines = [
        f"Study {content['study']}, digest {content['digest']} ({state})",
        f"Model: {content['model']} from {start}; {tasks}",
        "",
        f"What will run, with the code installed here and no other: {code}",
    ]
    if content["observer"]:
        lines.append("  this site observes: it evaluates what it receives on its public data, and never trains")
    else:
        lines += [
            f"  {at}. {stage['name']}: {stage['description']}" for at, stage in enumerate(content["stages"], start=1)
        ] or ["  nothing is trained and no entry leaves: the model that comes is measured on this site's cases"]
    if content["clusters"]:
        lines.append(f"  {content['clusters']}")
    if content["data"]:
        lines += ["", *data_in_words(content["data"])]
    return [*lines, "", *_leaves(content), "", *_costs(content)]


def _leaves(content: dict[str, Any]) -> list[str]:
    counts, metrics = content["counts"], content["metrics"]
    lines = ["What will leave this site:"]
    if content["secure_aggregation_only"]:
        lines.append(
            "  nothing in the open, by secure_aggregation_only of the policy: the site refuses studies without masks"
        )
    if content["held"]:
        lines.append("  the last of it only once somebody here has signed it (fedgraft site release), by the policy")
    if not content["observer"]:
        lines += [f"  {stage['name']}: {_stage_leaves(stage)}" for stage in content["stages"]]
        lines.append(f"  in all {_bytes(content['bytes_up'])}, besides these counts and metrics:")
    if content["secure_aggregation"]:
        lines.append(
            f"  all of it under masks: the coordinator reads sums over {content['secure_aggregation']} sites or more"
        )
    how = " (exact)" if counts["exact"] and not content["secure_aggregation"] else ""
    lines.append(f"  counts{how}: {'; '.join(counts['what'])}")
    lines.append(f"  metrics: {_metrics(metrics)}")
    lines += [
        f"  metrics by {name}: those of the test split once, of each group ({', '.join(groups)}) with ten patients or "
        "more, and of none that tells of fewer by subtraction"
        for name, groups in metrics["by_subgroup"].items()
    ]
    lines += [f"  metrics by {name}: none, since {why}" for name, why in metrics["not_by_subgroup"].items()]
    lines.append("  never: images, rows, patients' ids or their hashes, names of files, texts of errors")
    return lines


def _stage_leaves(stage: dict[str, Any]) -> str:
    leaves, rounds = stage["leaves"], stage["rounds"]
    figures = f"; figures of the work: {', '.join(stage['figures'])}" if stage["figures"] else ""
    if not leaves["entries"]:
        return f"no entries{figures}"
    times = f"{rounds} rounds" if rounds > 1 else "once"
    size = f"{leaves['numbers']:,} numbers in {leaves['entries']} arrays, {_bytes(leaves['bytes_per_round'])} a round"
    return f"{size}, {times}{figures}"


def _metrics(metrics: dict[str, Any]) -> str:
    if not metrics["sums"]:
        return metrics["once"] or "none, by metrics of the policy"
    every = metrics["every"]
    sums = ", ".join(metrics["sums"])
    when = [f"of the {metrics['split']} split {_often(every)}"] if every else []
    when += ["of the val split once more at the end, for thresholds"] if metrics["chosen_on_val"] else []
    return f"{sums}, over the site's cases {', '.join([*when, 'of the test split once'])}"


def _often(every: int) -> str:
    return f"every {every} exchanges" if every > 1 else "in every exchange"


def _costs(content: dict[str, Any]) -> list[str]:
    lines, cost = ["What it costs:"], content["cost"]
    for stage in content["stages"]:
        policy = stage["policy"]
        if policy["kind"] == "private" and cost is not None:
            lines.append(
                f"  {stage['name']}: noise of {policy['noise_multiplier']:.2f} times `max_grad_norm` "
                f"{policy['max_grad_norm']:g}, "
                f"{policy['sample_rate']:.0%} of the patients in each of {policy['steps']} steps: "
                f"epsilon {policy['epsilon']:.2f}"
            )
    if cost is not None and cost["metrics"]:
        lines.append(f"  noised counts of the test cases, once: epsilon {cost['metrics']:.2f}")
    if cost is not None:
        lines.append(
            f"  the whole study: epsilon {cost['epsilon']:.2f} of {cost['epsilon_per_study']:g}; with all "
            f"that was spent "
            f"{cost['epsilon_after']:.2f} of {cost['epsilon_lifetime']:g}; at delta {cost['delta']:.1e}, for one "
            f"{cost['unit']}"
        )
    plain = [stage["name"] for stage in content["stages"] if stage["policy"]["kind"] == "plain"]
    if plain:
        lines.append(
            f"  no differential privacy in {', '.join(plain)}: whoever receives what leaves there can invert it, up to "
            "single images"
        )
    if len(lines) == 1:
        lines.append("  no privacy: nothing that is computed from private data leaves")
    if content["refused"]:
        lines += ["", f"This site's policy refuses the study: {content['refused']}. {content['fix']}"]
    return lines


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
