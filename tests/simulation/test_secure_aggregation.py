"""A study with secure aggregation gives what it gives in the open, and shows the coordinator nothing but sums."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from scipy import stats

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import QuorumError, RunError
from fedgraft.common.base.files import load_tensors, read_json, write_json
from fedgraft.common.privacy.accountant import epsilon
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Greeting, MaskedUpdate
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.engines.faults import Fault
from fedgraft.simulations.engines.grids import InProcessGrid
from fedgraft.simulations.engines.run import Engine, Hospitals, prepare
from helpers.runs import page_of
from helpers.simulated import resume, simulate

# Gentle steps: rounding differs in the last bit of some entries, and training at a high rate makes much of little.
SGD = {"steps": 2, "batch_size": 8, "lr": 0.001, "optimiser": "sgd"}
PLANS: dict[str, Any] = {
    "fedavg": {"name": "fedavg", "rounds": 2, "local": SGD},
    "fedbn": {"name": "fedbn", "rounds": 2, "local": SGD},
    "graft": {"name": "graft", "rounds": 2, "local": {**SGD, "lr": 0.0001}},
}


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_tensors(run / "model.safetensors")


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def furthest(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    assert set(left) == set(right)
    return max(float(np.abs(left[key].astype(np.float64) - right[key]).max()) for key in left)


@pytest.mark.slow
@pytest.mark.parametrize("method", PLANS)
def test_masked_and_open_studies_give_the_same_model_and_metrics(hospitals, make_study, tmp_path, method: str):
    runs = {}
    for name, secure_aggregation in (("open", False), ("secure_aggregation", True)):
        study = make_study(method=PLANS[method], secure_aggregation=secure_aggregation, evaluate={"floor": 1})
        runs[name] = simulate(study, hospitals, tmp_path / name)
    assert furthest(weights(runs["open"]), weights(runs["secure_aggregation"])) < 1e-6
    plain, hidden = (read_json(runs[name] / "result.json") for name in ("open", "secure_aggregation"))
    pooled, found = plain["metrics"]["cls"]["pooled"], hidden["metrics"]["cls"]["pooled"]
    # A model that has hardly learnt gives scores so close together that some cases tie in the masked histogram.
    assert found["auroc"] == pytest.approx(pooled["auroc"], abs=0.01)
    for key in ("n", "accuracy", "balanced_accuracy", "brier", "loss", "f1"):
        assert found[key] == pytest.approx(pooled[key], rel=1e-3)
    for key, value in plain["metrics"]["cls"]["macro"].items():
        assert hidden["metrics"]["cls"]["macro"][key] == pytest.approx(value, rel=1e-3)
    assert hidden["status"] == "completed"
    for ours, theirs in zip(history(runs["secure_aggregation"]), history(runs["open"]), strict=True):
        assert ours["sites_aggregated"] == theirs["sites_aggregated"]
        losses = [own["loss"] * own["examples"] for own in theirs["train"].values() if "loss" in own]
        if losses:
            seen = sum(own["examples"] for own in theirs["train"].values())
            assert ours["train_pooled"]["loss"] == pytest.approx(sum(losses) / seen, rel=1e-5)


@pytest.mark.slow
def test_a_pool_gives_the_very_same_masked_run(hospitals, make_study, tmp_path):
    study = make_study(method=PLANS["graft"], secure_aggregation=True)
    one = simulate(study, hospitals, tmp_path / "one")
    two = simulate(study, hospitals, tmp_path / "two", Engine(name="pool", workers=2))
    assert furthest(weights(one), weights(two)) == 0
    assert [row["metrics"] for row in history(one)] == [row["metrics"] for row in history(two)]


class Tapped(InProcessGrid):
    """A grid whose coordinator writes down all that the sites send."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.greetings: list[Greeting] = []
        self.replies: list[tuple[int, MaskedUpdate]] = []
        self.words: list[dict] = []
        TAPS.append(self)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            self.words.append(json.loads(reply.content["words"]["json"]))
            try:
                self.replies.append((reply.metadata.src_node_id, wire.unpack_reply(reply.content)))
            except wire.WireError:
                self.greetings.append(wire.unpack_greeting(reply.content))
        return replies


TAPS: list[Tapped] = []


def test_the_coordinator_sees_no_site_by_itself(hospitals, make_study, tmp_path, monkeypatch):
    monkeypatch.setattr("fedgraft.simulations.engines.run.InProcessGrid", Tapped)
    study = make_study(method={"name": "graft", "rounds": 1, "local": SGD}, secure_aggregation=True)
    run = simulate(study, hospitals, tmp_path / "run")
    tap = TAPS.pop()
    for greeting in tap.greetings:
        assert (greeting.cases, greeting.labels, greeting.problems) == ({}, {}, {})
    assert all(isinstance(answer, MaskedUpdate) for _, answer in tap.replies)
    allowed = {"exchange", "contexts"}
    assert all(set(words) == allowed for words in tap.words[len(tap.greetings) :])
    by_length: dict[tuple[str, int], set[int]] = {}
    for number, (_, answer) in enumerate(tap.replies):
        for part, words in answer.parts.items():
            by_length.setdefault((part, answer.exchange), set()).add(len(words))
            if len(words) > 4000:
                counts = np.bincount(words.view(np.uint8), minlength=256)
                assert stats.chisquare(counts).pvalue > 1e-9, (number, part)
    assert all(len(lengths) == 1 for lengths in by_length.values()), "lengths tell of the data"
    # Nothing that was written down names a site with a figure of its own.
    for row in history(run):
        assert row["train"] == {}
        assert all(values["sites"] == {} and values["worst"] is None for values in row["metrics"].values())
    result = read_json(run / "result.json")
    assert all(own == {"cases": {}, "labels": {}, "problems": {}} for own in result["sites"].values())
    assert all(task["sites"] == {} for task in result["sums"].values())
    page = page_of(run)
    assert "masks hide single sites" in page.text
    assert "all cases pooled" in page.cells
    assert not set(hospitals.cohorts) & set(page.cells[: page.cells.index("all cases pooled")])


def test_an_upload_is_unlike_what_the_site_trained(hospitals, make_study, tmp_path, monkeypatch):
    from fedgraft.client.privacy.masking import masked_upload as sealing

    seen: list[tuple[np.ndarray, np.ndarray]] = []
    mask = sealing.mask

    def watched(words: np.ndarray, *rest: Any) -> None:
        before = words.copy()
        mask(words, *rest)
        seen.append((before, words.copy()))

    monkeypatch.setattr(sealing, "mask", watched)
    study = make_study(method={"name": "fedavg", "rounds": 1, "local": SGD}, secure_aggregation=True)
    simulate(study, hospitals, tmp_path / "run")
    uploads = [(plain, hidden) for plain, hidden in seen if len(plain) > 100_000]
    assert len(uploads) == 4
    for plain, hidden in uploads:
        values, noise = plain[4:].view(np.int64).astype(np.float64), hidden[4:].view(np.int64).astype(np.float64)
        ranks = values.argsort().argsort()
        assert abs(np.corrcoef(values, noise)[0, 1]) < 0.01
        assert abs(np.corrcoef(ranks, noise)[0, 1]) < 0.01


@pytest.mark.parametrize("kind", ["silent", "crash", "misshapen"])
def test_a_round_with_a_missing_site_is_repeated_by_the_others(hospitals, make_study, tmp_path, kind: str):
    faulty = Hospitals(hospitals.cohorts, {"north": Fault(kind=kind, rounds=(2,))})
    runs = [
        simulate(
            make_study(method=PLANS["fedavg"], secure_aggregation=secure_aggregation),
            faulty,
            tmp_path / str(secure_aggregation),
        )
        for secure_aggregation in (False, True)
    ]
    rows = history(runs[1])
    assert rows[1]["sites_aggregated"] == ["east", "south", "west"]
    assert rows[1]["missing"] == history(runs[0])[1]["missing"]
    assert [row["repeats"] for row in rows] == [0, 1, 0]
    assert rows[2]["sites_aggregated"] == ["east", "north", "south", "west"]
    assert furthest(weights(runs[0]), weights(runs[1])) < 1e-6


@pytest.mark.slow
def test_sites_that_do_not_regroup_stop_the_run_rather(hospitals, make_study, tmp_path):
    """The difference of the sums with and without north is north's update."""
    faulty = Hospitals(hospitals.cohorts, {"north": Fault(kind="crash", rounds=(2,))})
    study = make_study(method=PLANS["fedavg"], secure_aggregation=True)
    prepare(study, faulty, tmp_path / "run")
    for site in hospitals.cohorts:
        path = tmp_path / "run" / "sites" / site / "site.json"
        config = read_json(path)
        config["secure_aggregation"]["regroup"] = "private"
        write_json(path, config)
    with pytest.raises(QuorumError, match="west, not_secure"):
        resume(tmp_path / "run")
    settings = tmp_path / "run" / "simulation.json"
    write_json(settings, read_json(settings) | {"faults": {}})
    whole = simulate(study, hospitals, tmp_path / "whole")
    assert furthest(weights(resume(tmp_path / "run")), weights(whole)) == 0


def test_two_sites_are_refused_with_the_reason(hospitals, make_study, tmp_path):
    two = Hospitals({name: hospitals.cohorts[name] for name in ("east", "north")})
    with pytest.raises(QuorumError, match="each could subtract its own part"):
        simulate(make_study(method=PLANS["fedavg"], secure_aggregation=True), two, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    for name in two.cohorts:  # nobody was even asked
        assert [entry.kind for entry in EgressLog(tmp_path / "run" / "sites" / name).entries()] == ["greeting"]


def test_dropping_below_three_ends_the_run_with_no_partial_sum(hospitals, make_study, tmp_path):
    gone = {name: Fault(kind="crash", rounds=(1,)) for name in ("north", "west")}
    with pytest.raises(
        QuorumError, match=r"2 of 4 sites; missing: north, unreachable; west, unreachable; 3 are needed"
    ):
        simulate(
            make_study(method=PLANS["fedavg"], secure_aggregation=True),
            Hospitals(hospitals.cohorts, gone),
            tmp_path / "run",
        )
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "history.jsonl").exists()


RIDGE = {"name": "ridge_probe"}


@pytest.mark.parametrize(("kind", "gone", "cases"), [("crash", 1, 30), ("misshapen", 1, 30), ("misshapen", 2, None)])
def test_the_last_measurement_is_repeated_by_the_others(hospitals, make_study, tmp_path, kind, gone, cases):
    """As long as they are three; else there is none, and the model is there all the same."""
    faults = {name: Fault(kind=kind, rounds=(2,)) for name in ("east", "north")[:gone]}
    run = simulate(
        make_study(method=RIDGE, secure_aggregation=True), Hospitals(hospitals.cohorts, faults), tmp_path / "run"
    )
    result = read_json(run / "result.json")
    assert (result["metrics"]["cls"]["pooled"]["n"] if result["metrics"] else None) == cases
    assert history(run)[1]["repeats"] == (1 if cases else 0)
    assert result["status"] == "incomplete"
    assert weights(run)


def test_a_stage_that_merges_nothing_needs_its_quorum_too(hospitals, make_study, tmp_path):
    """Recalibration stays at the sites: nothing is masked, and who is missing is missing."""
    gone = {name: Fault(kind="crash", rounds=(2,)) for name in ("north", "west")}
    plan = [stage.model_dump(mode="json") for stage in make_study(method=PLANS["graft"]).plan]
    study = make_study(plan=[plan[0], plan[2]], secure_aggregation=True, rounds={"quorum": 0.75})
    with pytest.raises(QuorumError, match="Stage 'adapt', round 1: 2 of 4 sites"):
        simulate(study, Hospitals(hospitals.cohorts, gone), tmp_path / "run")


def test_words_changed_on_the_way_open_to_nothing(hospitals, make_study, tmp_path):
    faulty = Hospitals(hospitals.cohorts, {"north": Fault(kind="nan", rounds=(2,))})
    with pytest.raises(RunError, match="their masks do not cancel"):
        simulate(make_study(method=PLANS["fedavg"], secure_aggregation=True), faulty, tmp_path / "run")
    assert len(history(tmp_path / "run")) == 1


class Lying(InProcessGrid):
    """A coordinator that sends north another model than the others in exchange 2."""

    def _queue(self, message: Message) -> None:
        if message.metadata.group_id == "2" and message.metadata.dst_node_id == 3:
            instruction = wire.unpack_instruction(message.content)
            if instruction.tensors:
                key = next(key for key in instruction.tensors if key.endswith("weight"))
                bent = {**instruction.tensors, key: instruction.tensors[key] + np.float32(1e-6)}
                message.content = wire.pack_instruction(instruction, wire.pack_tensors(bent))
        super()._queue(message)


def test_a_site_that_was_sent_another_model_gives_noise_and_is_found(hospitals, make_study, tmp_path, monkeypatch):
    monkeypatch.setattr("fedgraft.simulations.engines.run.InProcessGrid", Lying)
    run = simulate(make_study(method=PLANS["fedavg"], secure_aggregation=True), hospitals, tmp_path / "run")
    row = history(run)[1]
    assert (row["missing"], row["repeats"]) == ({"north": "other_context"}, 1)
    assert row["sites_aggregated"] == ["east", "south", "west"]


class Unmasking(InProcessGrid):
    """A coordinator that asks for answers in the open in a study with secure aggregation."""

    def _queue(self, message: Message) -> None:
        if message.metadata.group_id:
            instruction = replace(wire.unpack_instruction(message.content), groups=None)
            message.content = wire.pack_instruction(instruction, wire.pack_tensors(instruction.tensors))
        super()._queue(message)


def test_no_site_answers_a_masked_study_in_the_open(hospitals, make_study, tmp_path, monkeypatch):
    monkeypatch.setattr("fedgraft.simulations.engines.run.InProcessGrid", Unmasking)
    with pytest.raises(QuorumError, match=r"0 of 4 sites; missing: east, not_secure; north, not_secure"):
        simulate(make_study(method=PLANS["fedavg"], secure_aggregation=True), hospitals, tmp_path / "run")


def test_a_site_without_the_key_of_its_roster_entry_takes_no_part(hospitals, make_study, tmp_path):
    study = make_study(method=PLANS["fedavg"], secure_aggregation=True)
    prepare(study, hospitals, tmp_path / "run")
    sites = tmp_path / "run" / "sites"
    (sites / "north" / "mask_key.pem").write_bytes((sites / "west" / "mask_key.pem").read_bytes())
    config = read_json(sites / "south" / "site.json")
    write_json(sites / "south" / "site.json", config | {"secure_aggregation": None})
    with pytest.raises(QuorumError, match="3 are needed"):
        resume(tmp_path / "run")
    assert "another mask key for 'north'" in (sites / "north" / "site.log").read_text()
    assert "the site's file no key for it" in (sites / "south" / "site.log").read_text()


class Stopped(Exception):
    """A run that is stopped from outside."""


@pytest.mark.slow
def test_a_masked_run_resumes_to_identical_weights(hospitals, make_study, tmp_path, monkeypatch):
    """Sites have masked for the exchange that is repeated; they mask it anew, under a new nonce."""
    study = make_study(method=PLANS["fedbn"], secure_aggregation=True)
    whole = simulate(study, hospitals, tmp_path / "whole")
    save, run = RunFolder.save_checkpoint, tmp_path / "cut"

    def interrupted(self: RunFolder, exchange: int, *rest: Any) -> None:
        if exchange == 2:
            raise Stopped
        save(self, exchange, *rest)

    monkeypatch.setattr(RunFolder, "save_checkpoint", interrupted)
    with pytest.raises(Stopped):
        simulate(study, hospitals, run)
    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    resume(run, Engine(name="pool"))
    assert furthest(weights(run), weights(whole)) == 0


PRIVATE = {"steps": 2, "lr": 0.01, "private": {"epsilon": 5.0, "sample_rate": 0.5}}
STRICT = SitePolicy(min_patients=1, epsilon_per_study=6.0)


def private_study(make_study: Any, **changes: Any) -> Any:
    return make_study(
        method={"name": "linear_probe", "rounds": 2, "local": PRIVATE}, secure_aggregation=True, **changes
    )


def test_privacy_and_masks_go_together(hospitals, make_study, tmp_path):
    """Strict sites let no metrics out, and neither exact counts nor a delta that they would follow from."""
    policies = dict.fromkeys(hospitals.cohorts, STRICT.model_copy(update={"delta": 4e-4}))
    run = simulate(private_study(make_study), Hospitals(hospitals.cohorts, policies=policies), tmp_path / "run")
    result = read_json(run / "result.json")
    assert result["status"] == "completed", result["headline"]
    assert result["metrics"] == {}
    for site, figures in result["privacy"].items():
        events = Held.of(run / "sites" / site).open(100.0).events(study_digest(run))
        assert figures["delta"] == 1e-3, "a power of ten does not tell the number of patients"
        assert figures["epsilon"] == pytest.approx(epsilon(list(events), 1e-3))
        assert figures["epsilon"] < epsilon(list(events), 4e-4)


def study_digest(run: Path) -> str:
    return str(read_json(run / "result.json")["study_digest"])


def test_a_repeated_private_round_is_charged_once_and_is_the_same_update(hospitals, make_study, tmp_path):
    faulty = Hospitals(hospitals.cohorts, {"north": Fault(kind="silent", rounds=(2,))})
    run = simulate(private_study(make_study), faulty, tmp_path / "run")
    assert [row["repeats"] for row in history(run)] == [0, 1, 0]
    for site in hospitals.cohorts:
        rows = Held.of(run / "sites" / site).open(100.0).rows()
        assert [row.round for row in rows] == ([1] if site == "north" else [1, 2])
        kinds = [entry.kind for entry in EgressLog(run / "sites" / site).entries()]
        assert kinds == ["greeting", *["secure_aggregation"] * (2 if site == "north" else 4)]


def test_sites_that_keep_their_metrics_are_left_out_of_them(hospitals, make_study, tmp_path):
    """With three others the metrics are those of the three; with two others there are none."""
    quiet = SitePolicy(min_patients=1, allow_non_dp=True)
    secure_aggregation = quiet.model_copy(update={"metrics": "secure_aggregation"})
    study = make_study(method={"name": "ridge_probe"}, secure_aggregation=True)
    for silent, cases in ((1, 30), (2, None)):
        policies = {n: quiet if at < silent else secure_aggregation for at, n in enumerate(sorted(hospitals.cohorts))}
        run = simulate(study, Hospitals(hospitals.cohorts, policies=policies), tmp_path / str(silent))
        found = read_json(run / "result.json")["metrics"]
        assert (found["cls"]["pooled"]["n"] if found else None) == cases
        assert read_json(run / "result.json")["status"] == "completed"


def test_observers_answer_in_the_open(hospitals, make_study, tmp_path):
    watched = Hospitals(hospitals.cohorts, observers=("north",))
    run = simulate(make_study(method={"name": "ridge_probe"}, secure_aggregation=True), watched, tmp_path / "run")
    rows = history(run)
    assert [row["sites_aggregated"] for row in rows] == [["east", "south", "west"]] * 2
    assert all(row["observers"]["cls"]["sites"].keys() == {"north"} for row in rows)


def test_a_table_is_standardised_from_masked_sums(tmp_path, make_study):
    rng = np.random.default_rng(5)
    cohorts = {}
    for site, cases in {"east": 40, "north": 30, "south": 50}.items():
        values = rng.normal((100, 1e-4), (20, 1e-5), (cases, 2))
        sick = values[:, 0] > 100
        rows = [
            f"p{n},{a},{b},{'ill' if s else 'well'}" for n, (a, b, s) in enumerate(zip(*values.T, sick, strict=True))
        ]
        (tmp_path / f"{site}.csv").write_text("id,age,level,state\n" + "\n".join(rows) + "\n")
        cohorts[site] = CohortSpec(kind="table", root=tmp_path / f"{site}.csv", patient_column="id")
    runs = []
    for secure_aggregation in (False, True):
        study = make_study(
            secure_aggregation=secure_aggregation,
            tasks=[{"name": "state", "classes": ["well", "ill"]}],
            input={"kind": "table", "numeric": ["age", "level"]},
            model={"backbone": "table_linear", "weights": None},
            method={"name": "ridge_probe"},
        )
        runs.append(simulate(study, Hospitals(cohorts), tmp_path / f"run-{secure_aggregation}"))
    assert furthest(*map(weights, runs)) < 1e-6
    means = weights(runs[1])["backbone.standardise.mean"]
    assert means[1] == pytest.approx(1e-4, rel=0.1)
