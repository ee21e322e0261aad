"""What a finished run leaves behind: the result, the aggregated model with its manifest, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from fedgraft.common.base.environment import fedgraft_version
from fedgraft.common.checks.explain import plan_table
from fedgraft.common.metrics.operating_point import names_of
from fedgraft.common.models.backbones.named import plugins_behind
from fedgraft.common.models.cluster_models import folder_of, write_clusters
from fedgraft.common.models.provenance import Provenance, held_out, may_have_learnt
from fedgraft.common.models.weights import find, save_weights
from fedgraft.common.protocol.routing import Tags, own, releases_plainly, stays
from fedgraft.common.study.inputs import ImageInput, TableInput
from fedgraft.common.study.plan import Statistics
from fedgraft.common.study.study import Study, read_study
from fedgraft.common.study.tasks import Task
from fedgraft.server.rounds.exchange.attendance import attendance
from fedgraft.server.rounds.improving import still_improving
from fedgraft.server.rounds.outcome import RunOutcome, Totals
from fedgraft.server.rounds.scores import Points
from fedgraft.server.runs.run_folder import RunFolder

SCHEMA = 1


def write_result(
    folder: RunFolder, study: Study, tags: Tags, outcome: RunOutcome, source: Provenance, how: tuple[str, bool]
) -> None:
    """Write `result.json`; the run counts as completed when every site that was asked took part to the end."""
    (engine, synthetic), rows = how, folder.history()
    totals = outcome.totals
    asked = {site: greeting for site, greeting in outcome.greetings.items() if site not in outcome.late}
    took_part = attendance(study, asked, outcome.absent, rows)
    spent = {site: privacy(study, tags, rows, site) for site, g in outcome.greetings.items() if not g.observer}
    state = next(iter(outcome.states.values()))
    content = {
        "schema": SCHEMA,
        "fedgraft": fedgraft_version(),
        "status": took_part.status,
        "enough": took_part.enough,
        "study": study.name,
        "study_digest": study.digest,
        "synthetic": synthetic,
        "headline": took_part.headline,
        "plan": plan_table(study, tags, {key: int(value.size) for key, value in state.items()}, rows),
        "remarks": [
            *_pinned(folder),
            *_measured(study, source, tags),
            *_remarks(study, totals.undecided),
            *_no_points(study, outcome.points),
            *still_improving(study, rows),
            *_choices(totals, rows),
            *_untrained(study),
            *_without_plugins(outcome.scores.values()),
        ],
        "metrics": outcome.scores.values(),
        "sums": outcome.scores.sums(),
        "subgroups": outcome.scores.subgroups(),
        "conformal": outcome.scores.conformal(outcome.validation),
        "operating_points": outcome.scores.at(outcome.points),
        "survival": outcome.followed.get("survival", []),
        "hazards": outcome.followed.get("hazards", []),
        "clusters": _clusters(study, outcome.totals),
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
            for site, code in {**outcome.absent, **outcome.others}.items()
        ]
        + totals.refusals,
        "privacy": spent,
        "privacy_overall": overall(spent),
        "baselines": None,
        "task_classes": {task.name: list(task.names) for task in study.tasks},
        "task_kinds": {task.name: task.kind for task in study.tasks},
        "engine": engine,
    }
    folder.write("result.json", content)


def _untrained(study: Study) -> list[str]:
    """That figures say nothing of a model where all stages only describe the sites' cases."""
    describes = [isinstance(stage.local, Statistics) and stage.local.survival is not None for stage in study.plan]
    if not all(describes) or not describes:
        return []
    return ["No stage trains the model: survival is counted, and figures of the tasks are of heads as they began."]


def _clusters(study: Study, totals: Totals) -> dict[str, Any] | None:
    """Which sites have a model together, and what that rests on; None where all have one."""
    if study.clusters is None:
        return None
    return {"by": study.clusters.by, "sites": totals.taken, "likeness": totals.likeness}


def _choices(totals: Totals, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Models that no site has in the end, and whether sites had come to rest where they chose."""
    rounds = [row["chosen"] for row in rows if row.get("chosen")]
    if not rounds:
        return []
    said = [
        f"Model {name} is left out: no site has taken it in the end. Fewer models, or another seed, may do better."
        for name, sites in totals.clusters.items()
        if not sites
    ]
    moved = sorted(
        {site for before, now in pairwise(rounds[-3:]) for site in now if before.get(site) not in (None, now[site])}
    )
    if moved:
        said.append(
            f"In the last rounds {', '.join(moved)} still went from one model to another: who is with whom is chance."
        )
    return said


def privacy(study: Study, tags: Tags, rows: list[dict[str, Any]], site: str) -> dict[str, Any]:
    """What a site says that the study has cost it.

    `without_dp` names the stages that it answered without noise: epsilon says nothing of those.
    """
    spent = [row["spent"][site] for row in rows if site in row.get("spent", {})]
    plain = [stage.name for stage in study.plan if releases_plainly(stage, tags)]
    answered = {row["stage"] for row in rows if site in row["sites_aggregated"]}
    figures = spent[-1] if spent else {}
    return {"dp": bool(spent), **figures, "without_dp": [name for name in plain if name in answered]}


def overall(spent: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the model promises a patient, from what each site promises; None if any site worked without noise.

    A patient at one site has at most the largest epsilon and delta of all sites (parallel composition over disjoint
    patients); one at two sites has at most the sums of the two largest.
    """
    if not spent or not all(one.get("dp") and not one["without_dp"] for one in spent.values()):
        return None
    units = {str(one["unit"]) for one in spent.values()}
    epsilons, deltas = (
        sorted((float(one[key]) for one in spent.values()), reverse=True) for key in ("epsilon", "delta")
    )
    return {
        "unit": "patient" if units == {"patient"} else "image",
        "one_site": {"epsilon": epsilons[0], "delta": deltas[0]},
        "two_sites": {"epsilon": sum(epsilons[:2]), "delta": sum(deltas[:2])},
    }


def _pinned(folder: RunFolder) -> list[str]:
    """That sites were held to what they answered before, if they were."""
    agreement = folder.agreement()
    if agreement is None:
        return []
    sites = ", ".join(agreement.answers)
    return [f"Pinned to agreement {agreement.digest[:12]}: {sites} began with the cases over which they had answered."]


def _remarks(study: Study, undecided: Mapping[str, int]) -> list[str]:
    """What is no fault and yet changes what the figures mean, in sentences."""
    alone = [stage.name for stage in study.plan if stage.personalise == "best"]
    hidden = [
        f"What sites trained for themselves in stage {name!r} each uses only if it is better on its validation cases, "
        "which is known to that site alone: all figures here are of the model without it."
        for name in alone
    ]
    return hidden + [
        f"Stage {stage.name!r} could not stop early in {undecided[stage.name]} of {stage.rounds} rounds: too few cases "
        f"to say came back (evaluate.floor {study.evaluate.floor}, evaluate.every "
        f"{study.evaluate.every}, the sites' policies on metrics)."
        for stage in study.plan
        if undecided.get(stage.name)
    ]


def _without_plugins(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Which sites' figures came without a plug-in's metric that was asked for, as it is not made of noised counts."""
    for task, figures in metrics.items():
        for name in figures.get("facts", ()):
            if without := [site for site, own in figures["sites"].items() if name not in own]:
                yield (
                    f"{task}: no {name} of {', '.join(without)}, whose policies let counts out once, noised or coarse, "
                    "and a plug-in's metric follows from no such counts."
                )


def _measured(study: Study, source: Provenance, tags: Tags) -> list[str]:
    """That a finished model was measured, and whether that was a fair test, where nobody trained."""
    if study.plan:
        return []
    doubt = may_have_learnt(study, source.manifest) if source.manifest else ""
    said = (f"Nobody trained: {source.says} was measured as it is.", doubt, _without_what_sites_keep(study, tags))
    return [sentence for sentence in said if sentence]


def _without_what_sites_keep(study: Study, tags: Tags) -> str:
    """A sentence where the figures of the measured model's own run were of what each site keeps too."""
    folder = find(study.model.weights) if study.model.weights else None
    if folder is None or not (folder / "study.yaml").is_file():
        return ""
    then, _ = read_study(folder / "study.yaml")
    if not any(own(then.plan[-1], tags, key) for stage in then.plan for key in stays(stage, tags)):
        return ""
    return (
        f"In {then.name} each site keeps entries of its own, and its figures there were of a model with these in it; "
        "here all sites have the one that they share."
    )


def _no_points(study: Study, points: Points) -> list[str]:
    """Tasks and labels without the operating point that the study asks for."""
    if study.evaluate.operating_point is None:
        return []
    lacking = []
    for task in study.tasks:
        known = {point.name for point in points.get(task.name, []) if point is not None}
        lacking += [f"{task.name} ({name})" for name in names_of(task) if name not in known]
    if not lacking:
        return []
    return [
        f"No operating point for {', '.join(lacking)}: too few validation cases to say came back (evaluate.floor "
        f"{study.evaluate.floor} of either kind, the sites' policies on metrics)."
    ]


def write_model(folder: RunFolder, study: Study, outcome: RunOutcome, source: Provenance, synthetic: bool) -> None:
    """Write the aggregated model and its manifest, so that the run's folder serves as weights for the next study.

    Of clusters each has a folder of its own in it, with the study beside, so that it serves as a run's does.
    A model that was only measured is what it was, and says so: who trained it, and which patients were held out then.
    """
    measured = source.manifest if not study.plan else None
    how = "starting from" if study.plan else "measured there as it is:"
    facts = {
        "id": study.name,
        "backbone": study.model.backbone,
        "input": study.input if isinstance(study.input, ImageInput) else None,
        "classes": {task.name: task.classes for task in study.tasks if isinstance(task, Task)},
        "tasks": tuple(task for task in study.tasks if not isinstance(task, Task)),
        "licence": source.licence,
        "synthetic": synthetic or bool(measured and measured.synthetic),
        "how": f"study digest {study.digest}, {how} {source.says}",
        "base_models": tuple(base_model.backbone for base_model in study.model.base_models),
        "table": study.input if isinstance(study.input, TableInput) else None,
        "held_out": measured.held_out if measured else held_out(study),
        "plugins": plugins_behind(study.model.architectures),
        "adapters": study.model.adapters,
        "operating_points": {
            task: known for task, own in outcome.points.items() if (known := tuple(filter(None, own)))
        },
    }
    clusters = outcome.totals.taken
    if clusters:
        write_clusters(folder.path, clusters)
    for cluster, state in outcome.states.items():
        if cluster and cluster not in clusters:
            continue
        where = folder_of(folder.path, cluster)
        if cluster:
            RunFolder(where).write_study(study)
        sites = f"cluster {cluster}: {', '.join(clusters[cluster])}" if cluster else f"{len(outcome.greetings)} sites"
        trained_on = measured.trained_on if measured else f"study {study.name} over {sites}"
        manifest = save_weights(where, state, facts | {"trained_on": trained_on})
        if outcome.ood_model is not None:
            outcome.ood_model.write(where, manifest.sha256)
