"""Features under a frozen backbone: computed once, kept on disk for their owner alone, and without any effect."""

from __future__ import annotations

import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.cli.deployed_commands import start as site_start
from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.enrolment.config import read_config
from fedgraft.client.enrolment.home import Joined, SiteHome
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.features import Features, forget_features
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.model import TransferModel, state_arrays
from fedgraft.common.protocol.instructions import Arrays, Instruction, Update
from fedgraft.common.study.schedule import Step, split_at
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import OPEN, Hospitals, prepare
from helpers.simulated import resume
from helpers.work import CPU, MakeStudy, images

PROBE = {"name": "linear_probe", "rounds": 3, "local": {"epochs": 2, "batch_size": 8, "lr": 0.01}}


def the_cohort(seed: int = 0) -> Cohort:
    inputs, known = images(150, seed)
    splits = {"train": torch.arange(140), "val": torch.arange(140, 145), "test": torch.arange(145, 150)}
    known[3] = -1
    return Cohort("north", inputs, {"cls": known}, tuple(map(str, range(150))), splits, (), {})


def a_site(study: Study, folder: Path, policy: SitePolicy = OPEN, seed: int = 0, *, keep: bool = True) -> Site:
    mine = the_cohort(seed)
    policy = policy.model_copy(update={"keep_features": keep})
    return Site(
        study, mine, LocalModel(study, CPU), folder, PrivacyGuard(study, policy, folder, learning_patients(study, mine))
    )


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many cases each call of a backbone was given."""
    calls: list[int] = []
    real = TransferModel.features

    def features(self: TransferModel, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return real(self, x)

    TransferModel.features = features  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        TransferModel.features = real  # type: ignore[method-assign]


def start(study: Study, seed: int = 0) -> dict[str, np.ndarray]:
    model = LocalModel(study, CPU).model
    torch.manual_seed(seed)
    return {key: array.copy() for key, array in state_arrays(model).items()}


def course(site: Site, study: Study, state: Arrays, *, end: bool = True) -> list[Update]:
    """All exchanges of a study at its only site, whose update is the next state."""
    answers, exchange = [], 0
    for number, stage in enumerate(study.plan):
        for round_ in range(1, stage.rounds + 1):
            exchange += 1
            split = split_at(study, Step(exchange, number, round_, work=True))
            instruction = Instruction(study.digest, exchange, number, round_, True, split, dict(state))
            answers.append(answer(site, instruction))
            state = dict(state) | {key: a for key, a in answers[-1].tensors.items() if key in state}
    return [*answers, finish(site, study, exchange + 1, state)] if end else answers


def finish(site: Site, study: Study, exchange: int, state: Arrays) -> Update:
    """The last exchange, which only evaluates."""
    last = len(study.plan) - 1
    return answer(site, Instruction(study.digest, exchange, last, study.plan[last].rounds, False, "test", dict(state)))


def answer(site: Site, instruction: Instruction) -> Update:
    got = site.visit(instruction)
    assert isinstance(got, Update), got
    return got


def bits(answers: list[Update]) -> list[dict[str, bytes]]:
    return [
        {key: array.tobytes() for key, array in one.tensors.items()}
        | {f"{task}/{key}": array.tobytes() for task, own in one.metrics.items() for key, array in own.items()}
        for one in answers
    ]


def test_the_backbone_runs_once_per_split_in_a_whole_study(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method=PROBE)
    state = start(study)
    with counted() as calls:
        course(a_site(study, tmp_path / "kept"), study, state)
    assert sum(calls) == 139 + 5 + 5
    with counted() as calls:
        course(a_site(study, tmp_path / "not", keep=False), study, state)
    assert sum(calls) == 3 * (139 + 5) + 5


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["linear_probe", "graft"])
def test_what_is_kept_changes_no_bit(make_study: MakeStudy, tmp_path: Path, preset: str) -> None:
    """Kept, not kept, and with a new process in every round that finds them on the disk."""
    study = make_study(method=PROBE | {"name": preset})
    state = start(study)
    kept = course(a_site(study, tmp_path / "kept"), study, state)
    plain = course(a_site(study, tmp_path / "not", keep=False), study, state)
    assert bits(kept) == bits(plain)

    class Restarted:
        def visit(self, instruction: Instruction) -> object:
            return a_site(study, tmp_path / "new").visit(instruction)

    with counted() as calls:
        again = course(Restarted(), study, state)  # type: ignore[arg-type]
    assert bits(again) == bits(kept)
    if preset == "linear_probe":
        assert sum(calls) == 139 + 5 + 5


def test_an_observer_keeps_them_too(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method=PROBE)
    site, state = Site(study, the_cohort(), LocalModel(study, CPU), tmp_path, None), start(study)
    with counted() as calls:
        for exchange in (1, 2, 3, 4):
            answer(site, Instruction(study.digest, exchange, 0, min(exchange, 3), False, "all", state))
    assert sum(calls) == 149
    assert not list((tmp_path / "features").iterdir())


def test_features_of_another_backbone_are_not_used(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method=PROBE)
    local_model, loader = LocalModel(study, CPU), Loader(the_cohort(), study.input, CPU)
    features = Features(loader, tmp_path, study.digest)
    old = features.loader(local_model, "old", "train")._inputs.clone()
    assert torch.equal(features.loader(local_model, "old", "train")._inputs.nan_to_num(), old.nan_to_num())
    with torch.no_grad():
        for parameter in local_model.model.parameters():
            parameter.mul_(1.1)
    new = features.loader(local_model, "new", "train")._inputs
    assert not torch.equal(new[:3], old[:3])
    fresh = Features(loader, tmp_path, study.digest).loader(local_model, "new", "train")._inputs
    assert torch.equal(fresh.nan_to_num(), new.nan_to_num())
    other = Features(Loader(the_cohort(1), study.input, CPU), tmp_path, study.digest)
    assert not torch.equal(other.loader(local_model, "new", "train")._inputs[:3], new[:3])


def test_they_lie_on_disk_for_their_owner_alone_until_the_study_ends(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method=PROBE)
    site, state = a_site(study, tmp_path), start(study)
    visits = len(course(site, study, state, end=False))
    found = sorted((tmp_path / "features").rglob("*.safetensors"))
    assert [path.name for path in found] == ["train.safetensors", "val.safetensors"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    assert stat.S_IMODE((tmp_path / "features" / study.digest).stat().st_mode) == 0o700
    finish(site, study, visits + 1, state)
    assert not list((tmp_path / "features").iterdir())


def test_a_new_study_deletes_what_an_earlier_one_has_left(make_study: MakeStudy, tmp_path: Path) -> None:
    first, second = make_study(method=PROBE), make_study(method=PROBE, seed=4)
    course(a_site(first, tmp_path), first, start(first), end=False)
    left = tmp_path / "features" / first.digest
    own = tmp_path / second.digest
    course(a_site(second, own), second, start(second), end=False)
    assert left.exists()
    forget_features(tmp_path, second.digest)
    assert not left.exists()
    kept = own / "features" / second.digest
    assert kept.exists()
    forget_features(tmp_path)
    assert not kept.exists()
    assert own.exists()


def test_a_greeting_and_a_start_delete_what_a_broken_study_has_left(
    make_study: MakeStudy, hospitals: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of any study of the site."""
    run = tmp_path / "run"
    prepare(make_study(method=PROBE), hospitals, run)
    state = run / "sites" / "east"
    left = [folder / "features" / "0123456789abcdef" for folder in (state, state / "0123456789abcdef")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "train.safetensors").write_bytes(b"of patients")
    resume(run)
    assert not any(folder.exists() for folder in left)
    assert (state / "approvals.json").exists()

    home = SiteHome(tmp_path / "home")
    home.write_joined(Joined(consortium="c", site="east", host="h", port=1))
    config = read_config(state / "site.json")
    home.config.write_text(config.model_copy(update={"state": home.state}).model_dump_json())
    (home.state / "ledger").mkdir(parents=True)
    old = home.state / "0123456789abcdef" / "features" / "0123456789abcdef"
    old.mkdir(parents=True)
    seen = []
    monkeypatch.setattr("fedgraft.client.runtime.executor.run_site", lambda home, stop: seen.append(old.exists()))
    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    try:
        site_start(home.path, as_json=False)
    finally:
        for kind, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(kind, handler)
    assert seen == [False]
    assert (home.state / "ledger").exists()


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_computed_again(make_study: MakeStudy, tmp_path: Path, damage: str) -> None:
    study = make_study(method=PROBE)
    local_model, loader = LocalModel(study, CPU), Loader(the_cohort(), study.input, CPU)
    want = Features(loader, tmp_path, study.digest).loader(local_model, "one", "train")._inputs
    (path,) = (tmp_path / "features").rglob("train.safetensors")
    data = bytearray(path.read_bytes())
    data[-9] ^= 64
    path.write_bytes(data[:1000] if damage == "cut" else data)
    with counted() as calls:
        got = Features(loader, tmp_path, study.digest).loader(local_model, "one", "train")._inputs
    assert sum(calls) == 139
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method=PROBE)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "features").write_text("in the way")
    state = start(study)
    got = course(a_site(study, tmp_path / "site"), study, state)
    shutil.rmtree(tmp_path / "site")
    assert bits(got) == bits(course(a_site(study, tmp_path / "site"), study, state))


def test_augmented_heads_see_their_images(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method=PROBE | {"local": PROBE["local"] | {"augment": {}}})  # type: ignore[operator]
    with counted() as calls:
        course(a_site(study, tmp_path), study, start(study))
    assert sum(calls) == 3 * 2 * 139 + 5 + 5
