"""A site holds what it works on, and not the models of all rounds before: hundreds of them would fill its memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.runtime.sessions import Models
from fedgraft.common.protocol.instructions import Instruction, Update
from helpers.courses import PRIVATE, TRAIN, a_model, a_site
from helpers.work import MakeStudy

ROUNDS = 5


@pytest.mark.parametrize("stage", [TRAIN, PRIVATE], ids=["plain", "private"])
def test_models_of_earlier_rounds_are_let_go(stage: dict[str, Any], make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(plan=[stage | {"rounds": ROUNDS}], evaluate={"every": 0})
    site, model = a_site(study, tmp_path), a_model(study)
    seen: list[list[weakref.ref[np.ndarray]]] = []
    for at in range(ROUNDS):
        arrays = {
            key: np.asarray(array + at, array.dtype) for key, array in model.items()
        }  # all of it is new each time
        seen.append([weakref.ref(array) for array in arrays.values()])
        answer = site.visit(Instruction(study.digest, at + 1, 0, at + 1, True, None, arrays))
        assert isinstance(answer, Update), answer
        del arrays, answer
    gc.collect()
    held = [sum(one() is not None for one in own) for own in seen]
    assert held[:-2] == [0] * (ROUNDS - 2), "a model of a round long ago is still in memory"


def test_hospitals_of_one_process_hold_one_object_of_their_study(make_study: MakeStudy) -> None:
    """Each was sent it by itself; a thousand of them would else hold a thousand plans."""
    models, (one, again, other) = Models(), (make_study(plan=[TRAIN | {"rounds": n}]) for n in (2, 2, 3))
    assert one is not again
    assert models.same(one) is models.same(again) is one
    assert models.same(other) is other
    assert models.same(again) is again, "the study before is not held for ever"
