"""What to start from, before anything is trained: candidates ranked by sums over frozen features; sites compared."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import combinations
from operator import add
from pathlib import Path

import numpy as np
from rich.table import Table

from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel, device_named
from fedgraft.client.training.statistics import feature_sums
from fedgraft.common.base.console.terminal import OUT, figure, say
from fedgraft.common.base.errors import FedgraftError, InputError
from fedgraft.common.checks.explain import check_study
from fedgraft.common.checks.faults.check_plugins import read_pinned
from fedgraft.common.models.initialise import initialise
from fedgraft.common.models.weights import list_weights
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from fedgraft.simulations.engines.run import Hospitals, prepare, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario
from fedgraft.simulations.planning.transferability import distance, h_score, log_me

_APART = 2.0
"""Sites count as different if their means lie this many times further apart than chance would put them."""


@dataclass(frozen=True)
class Candidate:
    """Something to start from, and how much of the task lies ready in its features, by task."""

    weights: str | None
    backbone: str
    log_me: float
    h_score: float


@dataclass(frozen=True)
class Pair:
    """Two sites, how far apart their mean features are, in deviations, and how far chance alone would put them."""

    one: str
    other: str
    distance: float
    by_chance: float

    @property
    def apart(self) -> bool:
        """Whether they differ by more than chance."""
        return self.distance > _APART * self.by_chance


def suggest(
    path: Path, overrides: tuple[str, ...], scenario: str | None, named: Sequence[str], *, as_json: bool
) -> None:
    """Rank what a study could start from, on the sites of a scenario, and say what their differences suggest."""
    study, shipped = read_pinned(path, overrides)
    if (name := scenario or shipped) is None:
        raise InputError(f"{path} names no scenario.", fix="Say which hospitals to look at: --scenario FILE.")
    base = path.parent if scenario is None else Path()
    found = hospitals_of(load_scenario(base / name if (base / name).is_file() else name))
    ranked, pairs, cases = look(study, found, named)
    if as_json:
        facts = {"study": study.name, "candidates": [asdict(one) for one in ranked], "cases": cases}
        sys.stdout.write(json.dumps(facts | {"sites": [asdict(one) | {"apart": one.apart} for one in pairs]}) + "\n")
        return
    _show(study, ranked, pairs, cases)


def look(study: Study, found: Hospitals, named: Sequence[str]) -> tuple[list[Candidate], list[Pair], dict[str, int]]:
    """Candidates from best to worst, all pairs of sites by the best one's features, and labelled cases by site.

    InputError if nothing fits the study, or no site has labels.
    """
    if not isinstance(study.tasks[0], Task):
        raise InputError(
            f"Weights are ranked by how well they tell classes apart, which {study.tasks[0].name} does not ask for.",
            fix="Put a task that asks for classes first.",
        )
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as folder:
        prepare(study, Hospitals(found.cohorts), Path(folder) / "run")
        cohorts = {site: simulated_cohort(study, Path(folder) / "run", site) for site in found.cohorts}
    task, device = study.tasks[0].name, device_named("auto")
    scored = []
    for candidate in _candidates(study, named):
        local_model = LocalModel(candidate, device)
        local_model.load(initialise(candidate).state())
        sums = {
            site: feature_sums(local_model, Loader(cohort, candidate.input, device)) for site, cohort in cohorts.items()
        }
        grams = {site: own[f"{task}/gram"] for site, own in sums.items() if own[f"{task}/gram"][-1, -1] > 0}
        if not grams:
            raise InputError(f"No site has a label for task {task!r}.", fix="Check the sites' label columns.")
        gram = reduce(add, grams.values())
        cross = reduce(add, (sums[site][f"{task}/cross"] for site in grams))
        model = candidate.model
        scored.append((Candidate(model.weights, model.backbone, log_me(gram, cross), h_score(gram, cross)), grams))
    scored.sort(key=lambda one: -one[0].log_me)
    best = scored[0][1]
    pairs = [Pair(a, b, distance(best[a], best[b]), _by_chance(best[a], best[b])) for a, b in combinations(best, 2)]
    return [one for one, _ in scored], pairs, {site: int(gram[-1, -1]) for site, gram in best.items()}


def _candidates(study: Study, named: Sequence[str]) -> list[Study]:
    """The study with each of the weights that fit it, and with random entries."""
    refs = list(named) or [manifest.id for manifest in list_weights()]
    found = []
    for ref in refs:
        manifest = next((one for one in list_weights() if one.id == ref), None)
        backbone = manifest.backbone if manifest else study.model.backbone
        model = study.model.model_copy(
            update={"backbone": backbone, "weights": ref, "heads": "fresh", "base_models": ()}
        )
        candidate = study.model_copy(update={"model": model})
        try:
            check_study(candidate, ref)
        except FedgraftError as error:
            if named:
                raise InputError(f"{ref} does not fit study {study.name}: {error}") from None
            continue
        found.append(candidate)
    fresh = study.model.model_copy(update={"weights": None, "heads": "fresh"})
    return [*found, study.model_copy(update={"model": fresh})]


def _by_chance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(1 / one[-1, -1] + 1 / other[-1, -1]))


def _show(study: Study, ranked: Sequence[Candidate], pairs: Sequence[Pair], cases: dict[str, int]) -> None:
    table = Table("start from", "backbone", "LogME", "H-score", title=f"{study.name}: task {study.tasks[0].name}")
    for one in ranked:
        table.add_row(one.weights or "random entries", one.backbone, figure(one.log_me), figure(one.h_score))
    OUT.print(table)
    best = ranked[0]
    say(f"Start from {best.weights or 'random entries'}: its frozen features tell most of the labels (LogME).")
    say(f"{sum(cases.values())} labelled training cases at {len(cases)} sites, {min(cases.values())} at the smallest.")
    apart = [pair for pair in pairs if pair.apart]
    if apart:
        worst = max(apart, key=lambda pair: pair.distance)
        say(
            f"{len(apart)} of {len(pairs)} pairs of sites differ by more than chance, {worst.one} and {worst.other} "
            f"most ({worst.distance:.2f} deviations; chance {worst.by_chance:.2f}). Keep norm statistics at the sites: "
            "silobn or fedbn, or adapt at the end (graft)."
        )
    elif pairs:
        say("No two sites differ by more than chance: local norm layers would gain nothing; fedavg will do.")
    say("These are ranks, not results. See them tried: fedgraft compare STUDY --arm study --arm silobn --arm fedavg")
