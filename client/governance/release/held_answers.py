"""Answers that a site has worked out and not sent: each waits on its disk until a person lets it go, or does not.

What leaves in the end is what lay here and was decided on, to the bit: nothing is worked out again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import (
    canonical_json,
    digest_arrays,
    is_there,
    load_tensors,
    make_folder,
    read_sealed,
    save_tensors,
    sealed,
    write_json,
)
from fedgraft.common.base.value import Value
from fedgraft.common.identity.persons import Signed, release_words
from fedgraft.common.privacy.accountant import Spend
from fedgraft.common.protocol.instructions import Arrays, Update
from fedgraft.common.study.study import Study

FOLDER = "held_answers"
"""Within a site's state."""

Verdict = Literal["signed", "refused"]


class Decision(Value):
    """What a person decided about a held answer, by its digest, and when (UTC)."""

    decision: Verdict
    digest: str
    by: str
    at: str
    signed: Signed | None = None
    """The person's signature, where the site has persons."""

    def words(self, held: HeldAnswer) -> dict[str, Any]:
        """What the person who decides signs."""
        return release_words(held.study, held.exchange, self.model_dump(mode="json"))


@dataclass(frozen=True)
class HeldAnswer:
    """One held answer, without its arrays. `facts` are plain values for people, `digest` is of all that would leave."""

    folder: Path
    exchange: int
    facts: Mapping[str, Any]
    digest: str
    decision: Decision | None

    @property
    def study(self) -> str:
        """The digest of the study."""
        return str(self.facts["study"])

    def update(self) -> Update:
        """The answer itself. InputError if it is not, to the bit, what was held."""
        arrays, words = self._arrays(), self.facts["words"]
        leaves = {name: own for name, own in arrays.items() if not name.startswith("received/")}
        if self.digest != _digest(self.facts, leaves):
            raise InputError(f"{self.folder}: exchange {self.exchange}: is not what was held.")
        metrics: dict[str, dict[str, np.ndarray]] = {}
        for name, array in _part(leaves, "metrics").items():
            task, _, key = name.partition("/")
            metrics.setdefault(task, {})[key] = array
        spent = None if words["spent"] is None else Spend(**words["spent"])
        tensors, cluster = _part(leaves, "tensors"), str(words["cluster"])
        return Update(self.exchange, tensors, words["weights"], words["train"], metrics, spent, cluster)

    def received(self) -> dict[str, np.ndarray]:
        """The model's entries that had come when it was worked out."""
        return _part(self._arrays(), "received")

    def _arrays(self) -> dict[str, np.ndarray]:
        return load_tensors(_arrays_file(self.folder, self.exchange))


class HeldAnswers:
    """Those of one study at one site, by exchange; on disk, so that they outlast the site's process."""

    def __init__(self, state: Path, digest: str) -> None:
        self._folder = state / FOLDER / digest
        self._place = str(self._folder)

    def all(self) -> tuple[HeldAnswer, ...]:
        """All of them in order. InputError if a file is not as it was written."""
        try:
            names = os.listdir(self._place)  # noqa: PTH208 - asked twice at every visit, and there may be none
            own = [self._folder / name for name in sorted(names) if fnmatchcase(name, "[0-9]*.json")]
            return tuple(self._read(path) for path in own)
        except FileNotFoundError:
            return ()

    def hold(self, study: Study, place: tuple[str, int], update: Update, received: Arrays, why: str) -> HeldAnswer:
        """Put an answer on disk, with the model that came; `place` is stage and round, `why` the policy's grounds."""
        words = {
            "weights": dict(update.weights),
            "train": dict(update.train),
            "spent": None if update.spent is None else vars(update.spent),
            "cluster": update.cluster,
        }
        facts: dict[str, Any] = {
            "study": study.digest,
            "study_name": study.name,
            "exchange": update.exchange,
            "stage": place[0],
            "round": place[1],
            "held": _now(),
            "grounds": why,
            "secure_aggregation": study.secure_aggregation,
            "words": words,
            "tensors": _described(update.tensors),
            "metrics": {task: _described(own) for task, own in update.metrics.items()},
        }
        leaves = {f"tensors/{key}": array for key, array in update.tensors.items()}
        leaves |= {f"metrics/{task}/{key}": a for task, own in update.metrics.items() for key, a in own.items()}
        digest = _digest(facts, leaves)
        make_folder(self._folder)
        came = {f"received/{key}": array for key, array in received.items()}
        save_tensors(_arrays_file(self._folder, update.exchange), leaves | came, private=True)
        # Only now is it held: without this file the others are nothing.
        write_json(self._file(update.exchange), sealed({"facts": facts, "digest": digest}), private=True)
        return HeldAnswer(self._folder, update.exchange, facts, digest, None)

    def decide(self, held: HeldAnswer, decision: Decision) -> None:
        """Put on disk what a person decided. InputError if somebody decided before, or it is of another answer."""
        if any(one.exchange == held.exchange and one.decision is not None for one in self.all()):
            raise InputError(f"Exchange {held.exchange} of study {held.study[:12]} is decided already.")
        if decision.digest != held.digest:
            raise InputError("The decision is about another answer.")
        write_json(self._decision_file(held.exchange), sealed(decision.model_dump(mode="json")), private=True)

    def set_aside(self) -> None:
        """Put away what an earlier course of the study held: another one is held anew."""
        if is_there(self._folder):
            names = (self._folder.with_name(f"{self._folder.name}.before-{n}") for n in range(1, 10**6))
            self._folder.rename(next(name for name in names if not is_there(name)))

    def _read(self, path: Path) -> HeldAnswer:
        content = read_sealed(path)
        exchange, decided = int(path.stem), self._decision_file(int(path.stem))
        decision = Decision.model_validate(read_sealed(decided)) if is_there(decided) else None
        digest = str(content["digest"])
        if decision is not None and decision.digest != digest:
            raise InputError(f"{decided}: is about another answer than {path.name}.")
        return HeldAnswer(self._folder, exchange, content["facts"], digest, decision)

    def _file(self, exchange: int) -> Path:
        return self._folder / f"{exchange:06d}.json"

    def _decision_file(self, exchange: int) -> Path:
        return self._folder / f"decision-{exchange:06d}.json"


def studies_held(state: Path) -> tuple[str, ...]:
    """Digests of the studies of which this site has held anything, in their order."""
    found = (path.name for path in (state / FOLDER).glob("*") if len(path.name) == 64)
    return tuple(sorted(found))


def decision(verdict: Verdict, held: HeldAnswer, by: str) -> Decision:
    """What somebody decides now, not signed yet."""
    return Decision(decision=verdict, digest=held.digest, by=by, at=_now())


def _arrays_file(folder: Path, exchange: int) -> Path:
    return folder / f"{exchange:06d}.safetensors"


def _part(arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}


def _described(arrays: Arrays) -> dict[str, dict[str, Any]]:
    return {key: {"type": a.dtype.name, "shape": list(a.shape), "bytes": a.nbytes} for key, a in arrays.items()}


def _digest(facts: Mapping[str, Any], leaves: Arrays) -> str:
    """SHA-256 of all that would leave, and of which study's exchange it is, 64 hex digits."""
    return hashlib.sha256(canonical_json({"facts": facts, "arrays": digest_arrays(leaves)})).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
