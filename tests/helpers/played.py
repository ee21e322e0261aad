"""A site's real ClientApp, asked by a coordinator that a test plays, message by message, over a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import SiteConfig, read_site
from fedgraft.client.governance.approval import approve
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.app import app, forget
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.methods.memory.carried import down_shapes
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.answers import Pin, SiteAnswer
from fedgraft.common.protocol.instructions import (
    AggregationGroups,
    Answer,
    Greeting,
    Hello,
    Instruction,
    Refusal,
    Split,
)
from fedgraft.common.study.schedule import step_at
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import OPEN


class PlayedSite:
    """A hospital with its home in `home`. A restart is a process that begins anew."""

    def __init__(self, home: Path, cohort: CohortSpec, policy: SitePolicy = OPEN, **config: Any) -> None:
        self.home, self.state = home, home / "state"
        home.mkdir(mode=0o700)
        content = {"name": "north", "state": self.state, "cache": home / "cache", "threads": 1, "sync": False} | config
        SiteConfig(cohort=cohort, policy=policy, many_studies=True, **content).write(home / "site.json")
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.context = Context(1, 1, {"site-config": str(home / "site.json")}, RecordDict(), {})

    @property
    def config(self) -> SiteConfig:
        return read_site(self.home)

    @property
    def held(self) -> Held:
        return Held.of(self.config.state, self.config.witness)

    @property
    def log(self) -> EgressLog:
        return EgressLog(self.config.state, self.config.witness, sync=False)

    def restart(self) -> None:
        forget()

    def sends(self, kind: str, records: RecordDict) -> Message:
        message = Message(records, dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return app(message, self.context)

    def greets(self, study: Study, pin: Pin | None = None) -> Greeting | Refusal:
        approve(self.home, study.digest)
        pins = {} if pin is None else {"north": pin}
        hello = Hello(study.to_json(), agreement="ab" * 32 if pins else "", pins=pins)
        return wire.unpack_greeting(self.sends(wire.HELLO, wire.pack_hello(hello)).content)

    def supplies(self, study: Study) -> SiteAnswer | Refusal:
        """What the site answers to whoever asks what it could supply."""
        return wire.unpack_answer(self.sends(wire.ASK, wire.pack_hello(Hello(study.to_json()))).content)

    def visits(
        self,
        study: Study,
        exchange: int,
        groups: AggregationGroups | None = None,
        shift: float = 0.0,
        evaluate: Split | None = None,
    ) -> Answer:
        """The answer to the instruction that the study has under that number; `shift` makes the model another one."""
        step = step_at(study, exchange)
        assert step is not None
        model = LocalModel(study, torch.device("cpu"))
        arrays = {
            key: array + array.dtype.type(shift) if array.dtype.kind == "f" else array.copy()
            for key, array in model.read(model.tags).items()
        }
        if step.work:  # what methods keep between rounds is 0 in the first
            came = down_shapes(model.ground(study.plan[step.stage]))
            arrays |= {name: np.zeros(*form) for name, form in came.items()}
        instruction = Instruction(
            study.digest, exchange, step.stage, step.round, step.work, evaluate, arrays, "", groups
        )
        records = wire.pack_instruction(instruction, wire.pack_tensors(instruction.tensors))
        return wire.unpack_reply(self.sends(wire.VISIT, records).content)

    def backup(self, name: str) -> Path:
        """A copy of all that the site has, as a backup would have it."""
        return Path(shutil.copytree(self.home, self.home.with_name(name), symlinks=True))

    def restores(self, backup: Path, *parts: str) -> None:
        """Put these files and folders of the home back as they were then; what was not there then goes."""
        for part in parts:
            now, then = self.home / part, backup / part
            if now.is_dir() and not now.is_symlink():
                shutil.rmtree(now)
            else:
                now.unlink(missing_ok=True)
            if then.is_dir():
                shutil.copytree(then, now, symlinks=True)
            elif then.exists():
                shutil.copy2(then, now)
