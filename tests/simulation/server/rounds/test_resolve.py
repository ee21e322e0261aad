"""Sites that leave or join the heads of a finished run: the same heads as a run of exactly these sites."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.common.base.errors import FedgraftError, StudyError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.checks.explain import check_study
from fedgraft.common.closed_form.closed_form import heads_from_sums
from fedgraft.common.models.initialise import make_model
from fedgraft.common.models.weights import verify
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.study.stages.aggregates import Ridge
from fedgraft.common.study.study import Study
from fedgraft.server.rounds.resolve import resolve
from fedgraft.server.runs.retained_statistics import RetainedStatistics
from fedgraft.simulations.engines.run import OPEN, Hospitals
from helpers.simulated import simulate

MakeStudy = Callable[..., Study]
Command = Callable[..., tuple[int, str, str]]
HEADS = ("heads.cls.weight", "heads.cls.bias")
RIDGE = {"name": "ridge_probe", "retain_statistics": True}


def probe(make: MakeStudy, aggregate: dict[str, Any], **local: Any) -> Study:
    local = {"kind": "statistics", "retain_statistics": True} | local
    return make(plan=[{"name": "probe", "where": "labelled", "local": local, "share": "heads", "aggregate": aggregate}])


def only(hospitals: Hospitals, *names: str) -> Hospitals:
    return replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in names})


def far(one: Path, other: Path) -> float:
    mine, theirs = (load_tensors(run / "model.safetensors") for run in (one, other))
    assert mine.keys() == theirs.keys()
    return max(float(np.abs(mine[key].astype(float) - theirs[key]).max()) for key in mine)


@pytest.mark.parametrize(
    "aggregate",
    [{"kind": "ridge"}, {"kind": "ridge", "ridge_penalty": "loso"}, {"kind": "ncm"}, {"kind": "lda"}],
    ids=["ridge", "loso", "ncm", "lda"],
)
def test_heads_are_those_of_a_run_of_exactly_these_sites(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path, aggregate: dict[str, Any]
) -> None:
    study = probe(make_study, aggregate)
    names = ("east", "south", "west")
    everyone = simulate(study, hospitals, tmp_path / "everyone")
    fewer = simulate(study, only(hospitals, *names), tmp_path / "fewer")
    north = (
        simulate(study, only(hospitals, "north"), tmp_path / "north")
        if aggregate.get("ridge_penalty") != "loso"
        else None
    )
    assert far(everyone, fewer) > 1e-4  # north matters
    found = resolve(everyone, tmp_path / "left", without=["north"])
    assert (found.sites, found.left) == (names, ("north",))
    assert far(tmp_path / "left", fewer) < 1e-10
    verify(str(tmp_path / "left"))
    if north is not None:
        assert resolve(fewer, tmp_path / "joined", others=[north]).joined == ("north",)
        assert far(tmp_path / "joined", everyone) < 1e-10
        # What came out can be resolved again: north leaves where it joined.
        resolve(tmp_path / "joined", tmp_path / "again", without=["north"])
        assert far(tmp_path / "again", fewer) < 1e-10
    if aggregate["kind"] == "ridge":  # the penalty that these sites would have chosen
        assert found.ridge_penalties == read_ridge_penalties(fewer) != {}


def read_ridge_penalties(run: Path) -> dict[str, float]:
    return dict(json.loads((run / "history.jsonl").read_text().splitlines()[0])["ridge_penalties"])


@pytest.fixture(scope="module")
def kept(hospitals: Hospitals, make_study: MakeStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(make_study(method=RIDGE), hospitals, tmp_path_factory.mktemp("local_state") / "run")


def test_subtracting_a_site_from_the_total_gives_the_same_heads(kept: Path, tmp_path: Path) -> None:
    """A naive twin: the total of all sites less one site's sums, solved by a few lines of NumPy."""
    sums = RetainedStatistics.read(kept, "probe").sites
    gram, cross = (sum(own[f"cls/{kind}"] for own in sums.values()) for kind in ("gram", "cross"))
    gram, cross = gram - sums["east"]["cls/gram"], cross - sums["east"]["cls/cross"]
    penalty = resolve(kept, tmp_path / "out", without=["east"]).ridge_penalties["cls"]
    n, dim = gram[-1, -1], len(gram) - 1
    mean = gram[:dim, -1] / n
    centred = gram[:dim, :dim] - n * np.outer(mean, mean)
    spread = np.sqrt(np.diag(centred) / n)
    flat = spread < 1e-6
    spread[flat] = 1.0
    left = centred / np.outer(spread, spread) + n * penalty * np.eye(dim)
    right = (cross[:dim] - np.outer(mean, cross[-1])) / spread[:, None]
    weight = np.linalg.solve(left, right) / spread[:, None] * ~flat[:, None]
    state = load_tensors(tmp_path / "out" / "model.safetensors")
    np.testing.assert_allclose(state[HEADS[0]], 5 * weight.T, rtol=1e-4, atol=1e-5)


def test_sums_are_for_their_owner_alone_and_a_site_that_left_is_in_none(kept: Path, tmp_path: Path) -> None:
    resolve(kept, tmp_path / "out", without=["east"])
    for run in (kept, tmp_path / "out"):
        assert (run / "sums").stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in (run / "sums").iterdir())
    assert sorted(RetainedStatistics.read(tmp_path / "out", "probe").sites) == ["north", "south", "west"]
    gone = RetainedStatistics.read(kept, "probe").sites["east"]["cls/gram"].tobytes()
    assert gone in (kept / "sums" / "probe.safetensors").read_bytes()
    assert gone not in (tmp_path / "out" / "sums" / "probe.safetensors").read_bytes()
    assert read_json(tmp_path / "out" / "resolved.json")["measured"] is False


def test_damaged_sums_are_refused(kept: Path, hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path) -> None:
    run = simulate(make_study(method=RIDGE), only(hospitals, "east", "south"), tmp_path / "run")
    path = run / "sums" / "probe.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FedgraftError, match="is not as it was written"):
        resolve(run, tmp_path / "out", without=["east"])
    path.write_bytes((kept / "sums" / "probe.safetensors").read_bytes())
    with pytest.raises(FedgraftError, match="not about the sums"):
        resolve(run, tmp_path / "out", without=["east"])


def test_a_run_keeps_no_sums_unless_the_study_says_so(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    run = simulate(make_study(method="ridge_probe"), only(hospitals, "east", "west"), tmp_path / "run")
    assert not (run / "sums").exists()
    with pytest.raises(FedgraftError, match="did not say that the sites' sums are kept"):
        resolve(run, tmp_path / "out", without=["east"])
    old = make_study(method="ridge_probe").to_json()
    assert b"retain_statistics" not in old  # studies of before keep their digest


@pytest.mark.slow
def test_where_influence_would_stay_nobody_leaves(hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path) -> None:
    work = {"epochs": 1, "batch_size": 8, "lr": 0.003}
    train = {"name": "train", "where": "labelled", "local": {"kind": "gradient", **work}, "share": "all"}
    train |= {"aggregate": {"kind": "mean"}}
    heads = train | {"local": {"kind": "gradient", "train": "heads", **work}, "share": "heads"}
    local = {"kind": "statistics", "retain_statistics": True}
    solved = {"name": "probe", "where": "labelled", "local": local, "share": "heads", "aggregate": {"kind": "ridge"}}
    some = only(hospitals, "east", "south", "west")
    plans = {
        "would not fit the model": [solved, train],
        "'train' went on from the solved heads": [solved, heads],
        "east took part in stage 'train', which set what the features come from": [train, solved],
    }
    for number, (reason, plan) in enumerate(plans.items()):
        run = simulate(make_study(plan=plan), some, tmp_path / f"run{number}")
        with pytest.raises(FedgraftError, match=reason):
            resolve(run, tmp_path / "out", without=["east"])
    assert not (tmp_path / "out").exists()
    # A head that was trained before, and then solved, has left nothing behind.
    run = simulate(make_study(plan=[heads, solved]), some, tmp_path / "heads_first")
    fewer = simulate(make_study(plan=[heads, solved]), only(hospitals, "south", "west"), tmp_path / "fewer")
    resolve(run, tmp_path / "out", without=["east"])
    assert far(tmp_path / "out", fewer) < 1e-10


def test_other_features_and_the_same_site_twice_do_not_add_up(
    kept: Path, hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    other = simulate(make_study(method=RIDGE, seed=4), only(hospitals, "north"), tmp_path / "other")
    with pytest.raises(FedgraftError, match="other the entries that features come from"):
        resolve(kept, tmp_path / "out", others=[other])
    with pytest.raises(FedgraftError, match="east, north, south, west would be in the heads twice"):
        resolve(kept, tmp_path / "out", others=[kept])
    with pytest.raises(FedgraftError, match="keeps no sums of nobody"):
        resolve(kept, tmp_path / "out", without=["nobody"])
    with pytest.raises(FedgraftError, match="Nobody leaves"):
        resolve(kept, tmp_path / "out")


def test_too_few_sites_are_not_left(hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method=RIDGE, rounds={"min_sites": 2})
    run = simulate(study, only(hospitals, "east", "west"), tmp_path / "run")
    with pytest.raises(FedgraftError, match=r"1 sites would be left, and rounds\.min_sites of the study is 2"):
        resolve(run, tmp_path / "out", without=["east"])


def test_a_masked_study_keeps_nothing(make_study: MakeStudy) -> None:
    with pytest.raises(StudyError, match="masks hide each site's sums"):
        check_study(make_study(method=RIDGE, secure_aggregation=True), "study.yaml")
    check_study(make_study(method="ridge_probe", secure_aggregation=True), "study.yaml")


def test_a_site_whose_policy_does_not_say_so_stays_out(
    hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path
) -> None:
    strict = SitePolicy(**(OPEN.model_dump() | {"retain_statistics": False}))
    some = replace(hospitals, policies={"east": strict})
    run = simulate(make_study(method=RIDGE), some, tmp_path / "run")
    assert sorted(RetainedStatistics.read(run, "probe").sites) == ["north", "south", "west"]
    assert (
        read_json(run / "result.json")["refusals"][0] | {"site": "east", "code": "policy"}
        == (read_json(run / "result.json")["refusals"][0])
    )


def test_leave_for_sums_is_no_leave_to_keep_them(make_study: MakeStudy, tmp_path: Path) -> None:
    """A plan whose first sums may leave, and whose second ones would be kept as well."""
    probe = make_study(method=RIDGE).plan[0].model_dump(mode="json")
    plain = probe | {"name": "first", "local": probe["local"] | {"retain_statistics": False}}
    study = make_study(plan=[plain, probe])
    tags = make_model(study).tags()
    policy = SitePolicy(**(OPEN.model_dump() | {"retain_statistics": False}))
    PrivacyGuard(make_study(plan=[plain]), policy, tmp_path, 50).admit(tags)
    with pytest.raises(Refused, match=Code.POLICY):
        PrivacyGuard(study, policy, tmp_path, 50).admit(tags)


def test_noised_sums_were_paid_for_and_may_be_kept(hospitals: Hospitals, make_study: MakeStudy, tmp_path: Path) -> None:
    """What was released is left out, which is post-processing: the noise of those who stay is accounted for alone."""
    strict = SitePolicy(**(OPEN.model_dump() | {"retain_statistics": False}))
    noised = make_study(method=RIDGE | {"sums": {"epsilon": 8.0}})
    run = simulate(noised, replace(hospitals, policies={"east": strict}), tmp_path / "run")
    sums = RetainedStatistics.read(run, "probe").sites
    assert sorted(sums) == ["east", "north", "south", "west"]
    spent = read_json(run / "result.json")["privacy"]["east"]
    resolve(run, tmp_path / "out", without=["east"])
    total = {key: sum(own[key] for site, own in sums.items() if site != "east") for key in sums["east"]}
    aggregate, state = noised.plan[0].aggregate, load_tensors(run / "model.safetensors")
    assert isinstance(aggregate, Ridge)
    resolved = load_tensors(tmp_path / "out" / "model.safetensors")
    for key, array in heads_from_sums(total, aggregate, state).items():
        np.testing.assert_allclose(resolved[key], array, rtol=1e-5, atol=1e-7)
    assert read_json(run / "result.json")["privacy"]["east"] == spent  # nothing is given back


def test_the_command_says_what_it_did(kept: Path, tmp_path: Path, command: Command) -> None:
    code, out, _ = command("server", "resolve", kept, "--without", "north", "--out", tmp_path / "new")
    assert code == 0
    assert "heads from the sums of east, south, west" in out
    assert "Nothing in it is of north" in out
    code, _, err = command("server", "resolve", kept, "--without", "north", "--out", tmp_path / "new")
    assert code == 2
    assert "not empty" in err
