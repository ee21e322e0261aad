"""One site that is let in sends what it likes, in real runs: it loses its round, with a code, and nobody else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.bundle import pack_bundle
from fedgraft.common.protocol.instructions import Code, Update
from fedgraft.server.report import build_report
from fedgraft.simulations.engines import grids
from fedgraft.simulations.engines.run import Hospitals
from helpers.federation import lines, same_weights
from helpers.simulated import simulate

LIAR = "south"
Lie = Callable[[RecordDict], RecordDict]


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Lie]], None]:
    """Makes the site tell a lie in each of some exchanges; 0 is the greeting."""
    real = grids.answer

    def tell(lies: dict[int, Lie]) -> None:
        def answer(message: Message, context: Any) -> Message:
            reply = real(message, context)
            lie = lies.get(int(message.metadata.group_id or 0))
            if f"{LIAR}/site.json" in str(context.node_config.values()) and lie is not None:
                reply.content = lie(reply.content)
            return reply

        monkeypatch.setattr(grids, "answer", answer)

    return tell


def words(**changes: str) -> Lie:
    """The reply with other JSON at some keys; the texts need be no JSON."""

    def lie(records: RecordDict) -> RecordDict:
        told = json.loads(records["words"]["json"])
        text = json.dumps(told | dict.fromkeys(changes, "\u0007"))
        for key, raw in changes.items():
            text = text.replace(f'"{key}": "\\u0007"', f'"{key}": {raw}')
        return RecordDict({**records, "words": ConfigRecord({"json": text})})

    return lie


def update(change: Callable[[Update], Update]) -> Lie:
    return lambda records: wire.pack_reply(change(wire.unpack_reply(records)))


def shape_of(text: str) -> Lie:
    def lie(records: RecordDict) -> RecordDict:
        head = b'[["a","float32",' + text.encode() + b"]]"
        data = len(head).to_bytes(4, "little") + head + bytes(-(4 + len(head)) % 8)
        record = ArrayRecord({"x": Array("uint8", (len(data),), "fedgraft.bundle", data)})
        return RecordDict({**records, "tensors": record})

    return lie


def raw(shape: tuple[int, ...]) -> Lie:
    record = ArrayRecord({"backbone.x": Array("float32", shape, "fedgraft.raw", b"")})
    return lambda records: RecordDict({**records, "tensors": record})


class Bomb(RecordDict):
    """Records that cannot be read, as those that are too deep or too large for this machine."""

    error: type[Exception] = MemoryError

    def get(self, key: str, *default: Any) -> Any:
        if key == "words" and len(self):
            raise self.error
        return super().get(key, *default)


class Deep(Bomb):
    error = RecursionError


def some_sums(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return ClassificationSums.of(np.eye(3), np.arange(3)).arrays() | changes


def without_a_weight(answer: Update) -> Update:
    return replace(answer, weights={"*": answer.weights["*"]})


def int_entry(answer: Update) -> Update:
    key = next(key for key in answer.tensors if key.endswith("num_batches_tracked"))
    return replace(answer, tensors={**answer.tensors, key: np.full_like(answer.tensors[key], 2**62)})


def negative_variance(answer: Update) -> Update:
    key = next(key for key in answer.tensors if key.endswith("running_var"))
    return replace(answer, tensors={**answer.tensors, key: -np.ones_like(answer.tensors[key])})


LIES: dict[str, tuple[Lie, Code]] = {
    "a shape": (shape_of(f"[0,{2**70}]"), Code.GARBAGE),
    "a shape that numpy knows not": (shape_of("[0" + ",1" * 100 + "]"), Code.GARBAGE),
    "a shape of its own": (raw((0, 2**70)), Code.GARBAGE),
    "a weight": (words(weights='{"*":1' + "0" * 400 + "}"), Code.GARBAGE),
    "a weight without end": (words(weights='{"*":1e999}'), Code.GARBAGE),
    "no weight for a head": (update(without_a_weight), Code.BAD_WEIGHT),
    "hardly a weight": (words(weights='{"*":1e-320,"cls":1e-320}'), Code.BAD_WEIGHT),
    "a loss": (words(train='{"loss":NaN}'), Code.GARBAGE),
    "a cost": (words(spent='{"epsilon":Infinity,"delta":0.1}'), Code.GARBAGE),
    "steps": (
        words(
            spent='{"epsilon":1,"delta":0.1,"unit":"patient","relation":"add/remove","accountant":"rdp","steps":1'
            + "0" * 400
            + "}"
        ),
        Code.GARBAGE,
    ),
    "an exchange": (words(exchange="1" + "0" * 400), Code.GARBAGE),
    "depth": (words(train="[" * 100_000), Code.GARBAGE),
    "a key twice": (words(train='{"loss":1,"loss":2}'), Code.GARBAGE),
    "a name that a terminal obeys": (words(train='{"\\u001b[2J":1}'), Code.GARBAGE),
    "half a letter": (words(train='{"\\ud800":1}'), Code.GARBAGE),
    "too much memory": (Bomb, Code.GARBAGE),
    "too deep": (Deep, Code.GARBAGE),
    "metrics of another task": (update(lambda a: replace(a, metrics={"other": some_sums()})), Code.GARBAGE),
    "metrics that none asked for": (update(lambda a: replace(a, metrics={"cls": some_sums()})), Code.GARBAGE),
    "counts beyond counting": (update(int_entry), Code.TOO_LARGE),
    "a negative variance": (update(negative_variance), Code.NOT_FINITE),
}


def rows_of_run(run: Path) -> list[dict[str, Any]]:
    return lines(run / "history.jsonl")


@pytest.mark.slow
def test_whatever_a_site_sends_costs_it_the_round_and_changes_nothing_for_the_others(
    hospitals, make_study, lying, tmp_path
):
    local = {"steps": 1, "batch_size": 8, "lr": 0.003}
    study = make_study(method={"name": "fedavg", "rounds": len(LIES), "local": local}, evaluate={"every": 0})
    lying({number: lie for number, (lie, _) in enumerate(LIES.values(), start=1)})
    run = simulate(study, hospitals, tmp_path / "run")
    rows = rows_of_run(run)
    found = dict(zip(LIES, (row["missing"].get(LIAR) for row in rows), strict=False))
    assert found == {name: code.value for name, (_, code) in LIES.items()}
    assert all(row["sites_aggregated"] == ["east", "north", "west"] for row in rows[: len(LIES)])
    others = replace(hospitals, cohorts={name: one for name, one in hospitals.cohorts.items() if name != LIAR})
    assert same_weights(run, simulate(study, others, tmp_path / "without"))
    assert build_report(run).is_file()


METRIC_LIES: dict[str, Lie] = {
    "shapes": update(lambda a: replace(a, metrics={"cls": some_sums(confusion=np.zeros((0, 1 << 39), np.uint8))})),
    "kinds": update(lambda a: replace(a, metrics={"cls": some_sums(loss=np.array([np.inf]))})),
    "nothing said": update(lambda a: replace(a, metrics={"cls": some_sums(loss=np.array([np.nan]))})),
    "counts": update(lambda a: replace(a, metrics={"cls": some_sums(score_counts=np.array([2**62] * 9))})),
    "some keys": update(lambda a: replace(a, metrics={"cls": {"loss": np.array([0.1])}})),
    "some tasks": update(lambda a: replace(a, metrics={"more": some_sums()})),
}


def test_metrics_that_cannot_be_cost_the_site_the_round_too(hospitals, make_study, lying, tmp_path):
    tasks = [{"name": "cls", "classes": ["left", "right", "middle"]}]
    local = {"steps": 1, "batch_size": 8, "lr": 0.003}
    study = make_study(tasks=tasks, method={"name": "fedavg", "rounds": len(METRIC_LIES), "local": local})
    lying(dict(enumerate(METRIC_LIES.values(), start=1)))
    rows = rows_of_run(simulate(study, hospitals, tmp_path / "run"))
    assert [row["missing"].get(LIAR) for row in rows] == ["garbage"] * len(METRIC_LIES) + [None]
    assert all(row["metrics"]["cls"]["pooled"]["n"] > 0 for row in rows)


def indefinite(answer: Update) -> Update:
    """Second moments that no cases have: in one direction less than none."""
    halves = {key: array.copy() for key, array in answer.tensors.items()}
    half = next(array for key, array in halves.items() if key.endswith("/triangle"))
    half[1] = 1e6  # between the first two features, whose squares are far below
    return replace(answer, tensors=halves)


def scaled(factor: float) -> Callable[[Update], Update]:
    return lambda answer: replace(answer, tensors={key: array * factor for key, array in answer.tensors.items()})


def without_cases(answer: Update) -> Update:
    halves = {key: array.copy() for key, array in answer.tensors.items()}
    next(array for key, array in halves.items() if key.endswith("/triangle"))[-1] = 0
    return replace(answer, tensors=halves)


SUM_LIES = {
    "indefinite": indefinite,
    "huge": scaled(1e300),
    "tiny": scaled(1e-300),
    "no cases": without_cases,
    "negative": scaled(-1.0),
}


@pytest.mark.parametrize("lie", SUM_LIES)
@pytest.mark.parametrize("penalty", [0.1, "loso"])
def test_sums_that_no_cases_could_have_given_do_not_stop_what_is_solved(
    hospitals: Hospitals, make_study, lying, tmp_path, lie: str, penalty: float | str
):
    plan = [
        {
            "name": "probe",
            "local": {"kind": "statistics"},
            "share": "heads",
            "aggregate": {"kind": "ridge", "ridge_penalty": penalty},
        }
    ]
    study = make_study(plan=plan)
    lying({1: update(SUM_LIES[lie])})
    run = simulate(study, hospitals, tmp_path / "run")
    others = replace(hospitals, cohorts={name: one for name, one in hospitals.cohorts.items() if name != LIAR})
    first = rows_of_run(run)[0]
    assert first["missing"].get(LIAR) in ("garbage", "bad_weight", "too_large"), "tiny sums are no cases either"
    assert same_weights(run, simulate(study, others, tmp_path / "without"))


GREETINGS: dict[str, Lie] = {
    "cases": words(cases='{"train":1' + "0" * 400 + "}"),
    "splits": words(cases='{"train":5,"more":1}'),
    "labels": words(labels='{"other":{"a":1}}'),
    "classes": words(labels='{"cls":{"no such class":1}}'),
    "depth": words(labels="[" * 100_000),
    "a nonce": words(nonce='"' + "z" * 32 + '"'),
    "a flag": words(labelled="1"),
    "a name": words(site='"' + "x" * 100_000 + '"'),
    "memory": Bomb,
}


@pytest.mark.parametrize("lie", GREETINGS)
def test_a_greeting_that_cannot_be_keeps_the_site_out_and_nobody_else(hospitals, make_study, lying, tmp_path, lie: str):
    local = {"steps": 1, "batch_size": 8, "lr": 0.003}
    study = make_study(method={"name": "fedavg", "rounds": 1, "local": local})
    lying({0: GREETINGS[lie]})
    run = simulate(study, hospitals, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    assert result["refusals"][0]["code"] == "garbage"
    assert rows_of_run(run)[0]["sites_aggregated"] == ["east", "north", "west"]


def test_a_masked_study_asks_for_a_nonce_that_is_one(hospitals, make_study, lying, tmp_path):
    """The others derive their masks from it: one that is none would stop them all."""
    local = {"steps": 1, "batch_size": 8, "lr": 0.001, "optimiser": "sgd"}
    study = make_study(method={"name": "fedavg", "rounds": 1, "local": local}, secure_aggregation=True)
    for number, nonce in enumerate(('""', '"not hex at all, yet of 32 letters"', "[]")):
        lying({0: words(nonce=nonce)})
        run = simulate(study, hospitals, tmp_path / str(number))
        assert rows_of_run(run)[0]["sites_aggregated"] == ["east", "north", "west"], nonce


def test_a_masked_upload_that_cannot_be_costs_the_site_the_round(hospitals, make_study, lying, tmp_path):
    local = {"steps": 1, "batch_size": 8, "lr": 0.001, "optimiser": "sgd"}
    study = make_study(method={"name": "fedavg", "rounds": 4, "local": local}, secure_aggregation=True)
    empty = pack_bundle({"tensors": np.zeros((0, 1 << 39), np.uint64)})
    record = ArrayRecord({"x": Array("uint8", (len(empty),), "fedgraft.bundle", empty)})
    lying(
        {
            1: words(contexts='{"tensors":[]}'),
            2: lambda records: RecordDict({**records, "secure_aggregation": record}),
            3: Deep,
        }
    )
    rows = rows_of_run(simulate(study, hospitals, tmp_path / "run"))
    assert [row["missing"].get(LIAR) for row in rows[:3]] == ["garbage"] * 3
    assert [row["repeats"] for row in rows[:4]] == [1, 1, 1, 0]


def test_an_observer_that_says_nothing_ends_nothing(hospitals, make_study, lying, tmp_path):
    local = {"steps": 1, "batch_size": 8, "lr": 0.003}
    study = make_study(method={"name": "fedavg", "rounds": 2, "local": local})
    lying({1: update(lambda a: replace(a, metrics={})), 2: update(lambda a: replace(a, metrics={"x": some_sums()}))})
    rows = rows_of_run(simulate(study, replace(hospitals, observers=[LIAR]), tmp_path / "run"))
    assert len(rows) == 3
    assert [row["observers"] == {} for row in rows] == [True, True, False]
