"""LogME between sites, beside the distance that clusters are made by, on the four chest X-ray sites of `cxr`.

`python -m benchmarks.between_sites [seeds]`, with `$FEDGRAFT_REAL_DATA`: training patients alone, 64 pixels, ImageNet's
features and those of random entries. Of each pair of sites the evidence that one head fits both, less that of a head
each, in nats a case; and how far their class means lie apart beyond chance, in deviations.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Mapping
from functools import reduce
from itertools import combinations
from operator import add
from pathlib import Path

import numpy as np
import torch

from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.seeds import derive
from fedgraft.common.closed_form.likeness import apart
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study, find_study, parse_study
from fedgraft.common.study.tasks import AnyTask
from fedgraft.simulations.engines.run import prepare, simulated_cohort
from fedgraft.simulations.phantoms.hospitals import hospitals_of
from fedgraft.simulations.phantoms.scenario import load_scenario
from fedgraft.simulations.planning.grouping import SiteCases, cases_of
from fedgraft.simulations.planning.transferability import log_me

CASES = (50, 100, None)
RANDOM = {"model": {"backbone": "slim_resnet", "weights": None}, "input": {"kind": "image", "size": 64}}


def studies(seed: int) -> dict[str, Study]:
    """`cxr` from ImageNet's weights and from random entries."""
    content = find_study(Path("cxr"))[0].model_dump(mode="json") | {"seed": seed}
    return {"ImageNet": parse_study(content, "cxr"), "random entries": parse_study(content | RANDOM, "cxr")}


def cases_by_site(study: Study) -> dict[str, SiteCases]:
    """The labelled training cases of each site through the frozen backbone."""
    hospitals = hospitals_of(load_scenario("cxr"))
    with tempfile.TemporaryDirectory(prefix="fedgraft-bench-") as folder:
        prepare(study, hospitals, Path(folder) / "run")
        cohorts = {site: simulated_cohort(study, Path(folder) / "run", site) for site in hospitals.cohorts}
    model = LocalModel(study, torch.device("cpu"))
    model.load(initialise(study).state())
    return {
        site: cases_of(
            model,
            Loader(cohort, study.input, model.device),
            study.tasks[0],
            cohort.patients,
            derive(study.seed, "folds", site),
        )
        for site, cohort in cohorts.items()
    }


def some(own: SiteCases, count: int | None, seed: int) -> SiteCases:
    """So many of a site's cases, drawn at random; all without a number."""
    at = np.random.default_rng(seed).permutation(len(own.targets))[:count]
    return SiteCases(own.features[at], own.targets[at], own.patients[at], own.folds[at])


def evidence(task: AnyTask, cases: Mapping[str, SiteCases], sites: Collection[str]) -> float:
    """The log evidence of one linear head over all cases of these sites, in nats."""
    total = reduce(add, (cases[site].sums(task)[0] for site in sites))
    squares = np.sum([cases[site].squares(task)[0] for site in sites], axis=0)
    assert total.cross is not None
    return log_me(total.gram, total.cross, squares) * float(total.gram[-1, -1])


def main(seeds: int) -> None:
    """Print both figures of all pairs."""
    torch.set_num_threads(1)
    for seed in range(seeds):
        for name, study in studies(seed).items():
            everybody, task = cases_by_site(study), study.tasks[0]
            for count in CASES:
                cases = {site: some(own, count, seed) for site, own in everybody.items()}
                likeness = {site: own.likeness(task) for site, own in cases.items()}
                print(f"seed {seed}, {name}, {count or 'all'} cases a site")
                for one, other in combinations(sorted(cases), 2):
                    gained = evidence(task, cases, (one, other)) - sum(
                        evidence(task, cases, (s,)) for s in (one, other)
                    )
                    each = gained / sum(len(cases[site].targets) for site in (one, other))
                    far = max(apart(one, other, likeness).excess, 0.0) ** 0.5
                    print(f"  {one:12} {other:12} together less apart {each:+.3f}, {far:.2f} deviations", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
