"""A metric that a plug-in brings, through the table alone, where people see figures and where figures decide."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import fedgraft as fg
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.governance.review import in_words, review
from fedgraft.client.governance.verdict import judge
from fedgraft.client.inference.model import LoadedModel
from fedgraft.client.training.model.evaluate import predictions
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.checks.check_plugins import pinned
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.report import build_report
from fedgraft.server.rounds.scores import Scores
from fedgraft.server.watch.board import Board
from fedgraft.server.watch.screen import figures_of
from fedgraft.simulations.engines.run import OPEN, Engine, Hospitals, simulated_cohort
from helpers.plugins import EXAMPLE, fresh, install, wheel_of
from helpers.simulated import simulate

assert fresh
MakeStudy = Callable[..., Study]
STAGE = {
    "name": "train",
    "local": {"kind": "gradient", "steps": 2, "batch_size": 8, "lr": 0.003},
    "share": "all",
    "aggregate": {"kind": "mean"},
    "rounds": 3,
    "early_stopping": {"patience": 3},
}
EVALUATE = {"metrics": ["matthews"], "headline": {"cls": "matthews"}, "floor": 1}


@pytest.mark.slow
def test_it_is_seen_in_the_run_the_report_the_live_page_and_decides_when_a_stage_ends(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    fresh.syspath_prepend(install(wheel_of(EXAMPLE, tmp_path / "wheels"), tmp_path / "here"))
    study = make_study(plan=[STAGE], evaluate=EVALUATE, plugins=["fedgraft-example==1.0.0"])
    two = replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in ("east", "north")})
    judged: list[str] = []
    goodness = Scores.goodness

    def heard(scores: Scores, metric: str | None) -> float | None:
        judged.extend([] if metric else scores.headline_metrics().values())
        return goodness(scores, metric)

    fresh.setattr(Scores, "goodness", heard)
    run = simulate(study, two, tmp_path / "run", Engine(name="inprocess"))
    assert set(judged) == {"matthews"}
    result = json.loads((run / "result.json").read_text())["metrics"]["cls"]
    assert result["shown"][0] == "matthews"
    assert result["worst"]["matthews"] == min(own["matthews"] for own in result["sites"].values())
    reader = LoadedModel(str(run))
    logits, truth = predictions(reader.local_model, reader_loader(study, run, reader), "test")["cls"]
    confusion = sum_of(logits.argmax(axis=1), truth, 3)
    assert result["sites"]["east"]["matthews"] == pytest.approx(matthews(confusion), abs=1e-6)
    page = build_report(run).read_text(encoding="utf-8")
    assert "macro matthews" in page
    view = Board(ServerHome(tmp_path / "none"), run).view().run
    assert view is not None
    assert figures_of(view.sites[0], view.called).startswith("matthews ")


def reader_loader(study: Study, run: Path, reader: LoadedModel):
    return Loader(simulated_cohort(study, run, "east"), study.input, reader.local_model.device)


def sum_of(guess, truth, classes: int):
    import numpy as np

    found = np.zeros((classes, classes))
    np.add.at(found, (truth, guess), 1)
    return found


def matthews(confusion) -> float:
    """By its definition, as the correlation of two tables of ones and zeros."""
    import numpy as np

    pairs = [(t, g) for t in range(3) for g in range(3) for _ in range(int(confusion[t, g]))]
    one, other = (np.eye(3)[[pair[at] for pair in pairs]] for at in (0, 1))
    a, b = one - one.mean(axis=0), other - other.mean(axis=0)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.slow
def test_where_policies_let_counts_out_once_it_is_said_that_there_is_none_of_it(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    """To the site before it approves, and to the coordinator, who would else read an empty column as too few cases."""
    fresh.syspath_prepend(install(wheel_of(EXAMPLE, tmp_path / "wheels"), tmp_path / "here"))
    stage = {key: value for key, value in STAGE.items() if key != "early_stopping"} | {"rounds": 1}
    study = make_study(plan=[stage], evaluate=EVALUATE, plugins=["fedgraft-example==1.0.0"])
    policies = {"east": OPEN.model_copy(update={"metrics": "suppressed"})}
    cohorts = {name: hospitals.cohorts[name] for name in ("east", "north")}
    run = simulate(study, replace(hospitals, cohorts=cohorts, policies=policies), tmp_path / "run")
    (said,) = [line for line in json.loads((run / "result.json").read_text())["remarks"] if "matthews" in line]
    assert said.startswith("cls: no matthews of east, whose policies let counts out once")
    model = initialise(study).model
    for site, told in (("east", True), ("north", False)):
        config = read_config(run / "sites" / site / "site.json")
        content = review(study, model, config, judge(config, study, model.tags(), 120), approved=False)
        assert ("nothing of matthews" in " ".join(in_words(content | {"data": None}))) is told


SITES = ("east", "north", "south", "west")


class Inside:
    """The mean probability of pixels inside findings, less that of pixels outside: of logits, and not of masks."""

    tasks = ("segmentation",)
    better = "higher"
    low, high = -1.0, 1.0
    adds = (0.0, 1e4)

    def cases(self, outputs, targets):
        import numpy as np

        shares = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        parts = [shares * targets, targets, shares * ~targets, ~targets]
        return np.stack([part.sum(axis=(1, 2)) for part in parts], axis=1)

    def value(self, sums):
        return float(sums[0] / sums[1] - sums[2] / sums[3]) if sums[1] and sums[3] else None


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [False, True])
def test_of_masks_too_and_under_secure_aggregation(
    hidden: bool, make_study: MakeStudy, tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    """Held against the saved model's own logits, of all sites' test images together."""
    import numpy as np
    import torch

    from fedgraft.simulations.phantoms.hospitals import make_hospitals
    from fedgraft.simulations.phantoms.scenario import Scenario

    fg.register_metric("inside", Inside)
    phantom = {"modality": ["xr"], "patients": 24, "images_per_patient": [1, 1]}
    entries = [{"name": name, "phantom": phantom, "mask_images": name != "west"} for name in SITES]
    scenario = Scenario.model_validate({"name": "small", "seed": 5, "sites": entries})
    study = pinned(
        make_study(
            tasks=[{"name": "lesion", "kind": "segmentation"}],
            method={"name": "fedavg", "rounds": 1, "local": {"steps": 2, "batch_size": 8}},
            evaluate={"metrics": ["inside"], "every": 0, "floor": 1},
            secure_aggregation=hidden,
        )
    )
    run = simulate(study, Hospitals(make_hospitals(scenario, tmp_path / "hospitals")), tmp_path / "run")
    result = json.loads((run / "result.json").read_text())["metrics"]["lesion"]
    reader, rows = LoadedModel(str(run), everything=True), {}
    for site in SITES:
        cohort = simulated_cohort(study, run, site)
        loader = Loader(cohort, study.input, reader.local_model.device)
        known = [case for case in cohort.splits["test"].tolist() if cohort.targets["lesion"][case, 0, 0] >= 0]
        (batch,) = loader.batches([torch.tensor(known)]) if known else (None,)
        if batch is not None:
            with torch.inference_mode():
                logits = reader.local_model.model(batch.inputs)["lesion"].numpy()
            rows[site] = Inside().cases(logits, batch.targets["lesion"].numpy() == 1)
    assert set(rows) == {*SITES[:3]}, "one site has no masks"
    want = Inside().value(np.concatenate(list(rows.values())).sum(axis=0))
    assert result["pooled"]["inside"] == pytest.approx(want, abs=1e-6)
    assert result["sites"].keys() == (set() if hidden else {*SITES})
    for site, own in result["sites"].items():
        mine = Inside().value(rows[site].sum(axis=0)) if site in rows else None
        assert own["inside"] == (None if mine is None else pytest.approx(mine, abs=1e-6))


def test_arms_can_be_compared_by_it(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from fedgraft.simulations.compare.measures.answers import Answers
    from fedgraft.simulations.compare.measures.under_weights import under_weights
    from fedgraft.simulations.compare.question import Question

    fresh.syspath_prepend(EXAMPLE)
    import fedgraft_example.metric as example

    fg.register_metric("matthews", example.Matthews)
    question = Question.model_validate({"arms": ["study", "local"], "metric": "matthews"})
    assert question.metric == "matthews"
    with pytest.raises(ValueError, match=r"there is no 'mathews' to compare by; did you mean matthews\?"):
        Question.model_validate({"arms": ["study", "local"], "metric": "mathews"})
    rng = np.random.default_rng(2)
    answers = Answers(rng.normal(size=(40, 3)), rng.integers(0, 3, 40), np.arange(40))
    weights = np.stack([np.ones(40), np.r_[np.full(20, 2.0), np.zeros(20)], np.zeros(40)])
    whole, half, none = under_weights("matthews", make_study().tasks[0], answers, weights)
    guess = answers.outputs.argmax(axis=1)
    assert whole == pytest.approx(matthews(sum_of(guess, answers.targets, 3)))
    assert half == pytest.approx(matthews(sum_of(guess[:20], answers.targets[:20], 3)))
    assert np.isnan(none)
