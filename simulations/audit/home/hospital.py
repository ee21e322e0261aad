"""A made-up hospital with its own home: a table of patients, a policy, approvals, and the program that sites run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.client.attacks.attack_target import CPU
from fedgraft.client.data.cohorts.cohort import Cohort, load_cohort
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.enrolment.pseudonyms import keep_key, place_of
from fedgraft.client.governance.approval import approve
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.app import forget
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.bundle import WireError
from fedgraft.common.protocol.instructions import Answer, Code, Greeting, Hello, Instruction, Refusal
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.schedule import split_at, step_at
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.engines.node import asked, context_for

CLOSED = SitePolicy(min_patients=1, epsilon_per_study=20.0, epsilon_lifetime=20.0)
"""Nothing leaves but what noise pays for."""

PRIVATE: dict[str, Any] = {
    "name": "private",
    "local": {
        "kind": "gradient",
        "train": "heads",
        "optimiser": "sgd",
        "momentum": 0.0,
        "steps": 1,
        "lr": 1.0,
        "fixed_norm_stats": True,
        "private": {"noise_multiplier": 20.0, "sample_rate": 0.5},
    },
    "share": "heads",
    "aggregate": {"kind": "mean"},
    "rounds": 3,
}
SILENT: dict[str, Any] = {
    "name": "silent",
    "local": {"kind": "gradient", "train": "heads", "steps": 2, "batch_size": 8, "optimiser": "sgd", "lr": 0.1},
    "keep": "heads",
}


def home_study(columns: int, *plan: dict[str, Any], **more: Any) -> Study:
    """A study of two classes from so many columns, whose scale is public; `more` are further keys of it."""
    names = [f"c{number}" for number in range(columns)]
    scale = {name: {"mean": 0.0, "std": 1.0} for name in names}
    facts: dict[str, Any] = {
        "name": "audit",
        "tasks": [{"name": "cls", "classes": ["no", "yes"]}],
        "input": {"kind": "table", "numeric": names, "standardise": scale},
        "model": {"backbone": "table_linear", "weights": None},
        "evaluate": {"every": 0},
        "plan": list(plan),
    }
    return parse_study(facts | more, "audit")


class Hospital:
    """A site in the folder `home` with the patients of these numbers, one row each. A number stands for its values."""

    def __init__(
        self, home: Path, study: Study, patients: range | list[int], policy: SitePolicy = CLOSED, **facts: Any
    ) -> None:
        """`patient_column`, if given, is what the site's file says of whose a row is; `name` is the site's."""
        home.mkdir(parents=True, mode=0o700)
        self.home, self.study, self.table = home, study, home.parent / f"{home.name}.csv"
        self.left: list[Any] = []
        self._write(patients)
        spec = CohortSpec(kind="table", root=self.table, patient_column=facts.get("patient_column", "patient"))
        places = {"state": home / "state", "cache": home / "cache"}
        self.config = SiteConfig(name=facts.get("name", "north"), cohort=spec, policy=policy, **places)
        keep_key(self.config.state, b"the same for all who are played")
        self.allow(policy)
        approve(home, study.digest)

    def allow(self, policy: SitePolicy) -> None:
        """Write the site's file with this policy."""
        self.config = self.config.model_copy(update={"policy": policy, "sync": False})
        self.config.write(self.home / "site.json")

    def cohort(self) -> Cohort:
        """The patients as the study gets them."""
        wanted, place = cohort_request(self.config, self.study), place_of(self.config, self.study.digest)
        return load_cohort(self.config.name, self.config.cohort, wanted, place)

    def greet(self) -> Greeting | Refusal:
        """What the site says to a coordinator's first word."""
        content = self.heard(wire.HELLO, wire.pack_hello(Hello(self.study.to_json())))
        try:
            return wire.unpack_greeting(content)
        except WireError:
            return Refusal(0, Code.GARBAGE)

    def ask(self, exchange: int, value: float = 0.0) -> Answer:
        """The answer to what the study has under this number, with a model of which all entries have this value."""
        step = step_at(self.study, exchange)
        assert step is not None
        split = split_at(self.study, step)
        model = LocalModel(self.study, CPU)
        state = {key: np.full_like(array, value) for key, array in model.read(model.tags).items()}
        state |= {key: np.ones_like(array) for key, array in state.items() if key.endswith("std")}
        honest = Instruction(self.study.digest, exchange, step.stage, step.round, step.work, split, state)
        content = self.heard(wire.VISIT, wire.pack_instruction(replace(honest, tensors={}), wire.pack_tensors(state)))
        try:
            return wire.unpack_reply(content)
        except WireError:
            return Refusal(exchange, Code.GARBAGE)

    def heard(self, kind: str, content: Any) -> Any:
        """All that leaves in answer to one message, as records, which are kept in `left`."""
        self.left.append(asked(kind, content, context_for(1, self.home / "site.json")))
        return self.left[-1]

    def restart(self) -> None:
        """The site's process ends, and a new one begins."""
        forget()

    def _write(self, patients: range | list[int]) -> None:
        assert isinstance(self.study.input, TableInput)
        columns = self.study.input.numeric
        with self.table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["patient", "cls", *columns])
            for number in patients:
                values = np.random.default_rng(number).normal(size=len(columns))
                writer.writerow([f"p{number}", ("no", "yes")[number % 2], *(f"{value:.4f}" for value in values)])
