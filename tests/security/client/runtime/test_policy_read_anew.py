"""A hospital tightens its policy while a study runs: the next instruction already meets the new rules."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.governance.approval import approve, withdraw
from fedgraft.client.runtime.app import app, forget
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.model import state_arrays
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Answer, Code, Hello, Instruction, Refusal, Update
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals, prepare
from helpers.work import CPU, MakeStudy

ROUNDS = 6


class Asked:
    """The site `east` of a prepared run, as a coordinator talks to it."""

    def __init__(self, study: Study, run: Path) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.study = study
        self.config = run / "sites" / "east" / "site.json"
        self._context = Context(1, 1, {"site-config": str(self.config)}, RecordDict(), {})
        torch.manual_seed(0)
        self._state = state_arrays(LocalModel(study, CPU).model)

    def send(self, kind: str, records: RecordDict) -> RecordDict:
        message = Message(records, dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return app(message, self._context).content

    def greet(self) -> None:
        wire.unpack_greeting(self.send(wire.HELLO, wire.pack_hello(Hello(self.study.to_json()))))

    def ask(self, number: int) -> Answer:
        instruction = Instruction(self.study.digest, number, 0, number, True, None, self._state)
        records = wire.pack_instruction(instruction, wire.pack_tensors(self._state))
        return wire.unpack_reply(self.send(wire.VISIT, records))

    def change(self, **policy: Any) -> None:
        content = json.loads(self.config.read_text())
        self.config.write_text(json.dumps(content | {"policy": content["policy"] | policy}))


@pytest.fixture
def site(make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path) -> Iterator[Asked]:
    study = make_study(
        method={"name": "fedavg", "rounds": ROUNDS, "local": {"steps": 1, "batch_size": 8}}, evaluate={"every": 0}
    )
    prepare(study, hospitals, tmp_path / "run")
    yield Asked(study, tmp_path / "run")
    forget()


def test_a_tightened_policy_acts_on_the_very_next_instruction(site: Asked) -> None:
    site.greet()
    assert isinstance(site.ask(1), Update)
    site.change(allow_non_dp=False)
    for number in (2, 3):
        answer = site.ask(number)
        assert isinstance(answer, Refusal)
        assert answer.code is Code.POLICY
    site.change(allow_non_dp=True)
    assert isinstance(site.ask(3), Update)


@pytest.mark.parametrize("how", ["policy", "approval"])
def test_work_that_was_under_way_is_not_sent_under_rules_of_before(
    site: Asked, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """People close the site, or take the approval back, while an instruction is carried out."""
    site.greet()
    before, real = site.config.read_text(), Site.visit

    def meanwhile(self: Site, instruction: Instruction) -> Answer:
        answer = real(self, instruction)
        if how == "policy":
            site.change(allow_non_dp=False)
        else:
            withdraw(site.config.parent, site.study.digest)
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(Site, "visit", meanwhile)
        assert site.ask(1) == Refusal(1, Code.POLICY)
    site.config.write_text(before)
    approve(site.config.parent, site.study.digest)
    assert isinstance(site.ask(1), Update)


def test_a_file_whose_time_is_set_back_is_read_anew(site: Asked) -> None:
    """Of the same length, and with the time of before, as some programs that copy files leave them."""
    site.greet()
    assert isinstance(site.ask(1), Update)
    found, text = site.config.stat(), site.config.read_text()
    closed = text.replace('"allow_non_dp": true', '"allow_non_dp":false')
    assert len(closed) == len(text)
    assert closed != text
    site.config.write_text(closed)
    os.utime(site.config, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert site.ask(1) == Refusal(1, Code.POLICY)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{not json"),
        lambda path: path.write_text(path.read_text().replace('"policy": {', '"policy": {"allow_non_dp": true, ')),
        lambda path: path.unlink(),
    ],
    ids=["not JSON", "a key given twice", "gone"],
)
def test_under_rules_that_cannot_be_read_nothing_is_done(site: Asked, spoil: Callable[[Path], object]) -> None:
    site.greet()
    assert isinstance(site.ask(1), Update)
    before = site.config.read_text()
    spoil(site.config)
    answer = site.ask(2)
    assert isinstance(answer, Refusal)
    assert answer.code is Code.POLICY
    log = [json.loads(line) for line in (site.config.parent / "egress.jsonl").read_text().splitlines()]
    assert (log[-1]["kind"], log[-1]["words"]["code"]) == ("refusal", "policy")
    site.config.write_text(before)
    assert isinstance(site.ask(2), Update)
