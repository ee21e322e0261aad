"""Compiled passes: the same training up to last digits, the same each time, only where it is asked for, and without a
compiler as without them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.runtime.sessions import Models
from fedgraft.client.training.gradient import train
from fedgraft.client.training.model.evaluate import evaluate
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from helpers.dp import quiet, trainable
from helpers.work import CPU, NOW, MakeStudy, cohort, images, snapshot, steps

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "1")  # so that it is what it was afterwards
    torch.compiler.reset()
    return tmp_path / "home" / "compiled"


def made(make_study: MakeStudy, *, compiled: bool) -> tuple[LocalModel, Loader]:
    study = make_study(model={"backbone": "slim_resnet"})
    inputs, known = images(27)
    loader = Loader(cohort(inputs, {"cls": known}, held_out=6), study.input, CPU)
    return LocalModel(study, CPU, compile=compiled), loader


def code_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@needs_compiler
@pytest.mark.slow
def test_training_by_compiled_code_is_the_same_up_to_last_digits_and_the_same_each_time(
    make_study: MakeStudy, own_home: Path
) -> None:
    firsts, ends = [], []
    for compiled in (False, True, True):
        local_model, loader = made(make_study, compiled=compiled)
        begin = snapshot(local_model)
        train(local_model, loader, steps(1), tuple(local_model.tags), NOW)
        firsts.append(snapshot(local_model))
        train(local_model, loader, steps(3), tuple(local_model.tags), NOW)  # 21 cases by 8: two shapes
        evaluate(local_model, loader, "val")
        ends.append(snapshot(local_model))
    _, once, again = ends
    assert code_in(own_home)
    assert oct(own_home.stat().st_mode)[-3:] == "700"
    assert all(once[key].tobytes() == again[key].tobytes() for key in once)
    plain, compiled, _ = firsts
    assert any(plain[key].tobytes() != compiled[key].tobytes() for key in plain)
    for key in plain:
        moved = np.abs(plain[key].astype(float) - begin[key]).max(initial=0.0)
        assert np.abs(plain[key].astype(float) - compiled[key]).max(initial=0.0) <= 1e-3 * moved + 1e-6, key


@needs_compiler
@pytest.mark.slow
def test_frozen_entries_stay_with_compiled_code(make_study: MakeStudy, own_home: Path) -> None:
    local_model, loader = made(make_study, compiled=True)
    heads = [key for key in local_model.tags if key.startswith("heads.")]
    before = snapshot(local_model)
    train(local_model, loader, steps(2), heads, NOW)
    after = snapshot(local_model)
    assert code_in(own_home)
    assert {key for key in before if before[key].tobytes() != after[key].tobytes()} == set(heads)


def test_private_work_goes_through_no_compiled_code(make_study: MakeStudy, own_home: Path) -> None:
    """Its hooks would not be seen by code that was made without them."""
    local_model, loader = made(make_study, compiled=True)
    train_private(local_model, loader, [*map(str, range(27))], quiet(), trainable(local_model), NOW)
    assert own_home.is_dir()
    assert not code_in(own_home)


def test_without_a_compiler_training_is_as_it_is_without_compiled_code_and_says_so(
    make_study: MakeStudy, own_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, str(own_home / "no-compiler")))
    ends = []
    for compiled in (False, True):
        local_model, loader = made(make_study, compiled=compiled)
        with caplog.at_level(logging.WARNING):
            train(local_model, loader, steps(), tuple(local_model.tags), NOW)
        ends.append(snapshot(local_model))
    assert all(ends[0][key].tobytes() == ends[1][key].tobytes() for key in ends[0])
    said = [record.getMessage() for record in caplog.records if "compiled" in record.getMessage()]
    assert len(said) == 1
    assert "trains as without" in said[0]


def test_code_of_others_is_not_run(make_study: MakeStudy, own_home: Path) -> None:
    """Whoever may write in the folder could put code there."""
    own_home.mkdir(parents=True)
    own_home.chmod(0o777)
    with pytest.raises(InputError, match="compiled"):
        made(make_study, compiled=True)


def test_a_sites_own_configuration_asks_for_it(make_study: MakeStudy, tmp_path: Path) -> None:
    study, models = make_study(model={"backbone": "slim_resnet"}), Models()
    asks = SiteConfig(name="north", cohort=CohortSpec(kind="images", root=tmp_path), compile=True)
    with_it = models.of(study, CPU, asks)
    assert with_it.compiled is not None
    assert models.of(study, CPU, asks) is with_it
    assert models.of(study, CPU, asks.model_copy(update={"compile": False})).compiled is None
