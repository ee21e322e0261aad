"""No code of others runs at a site but what its policy lists, as it lists it: a coordinator that asks for more."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedgraft.client.enrolment.config import read_site
from fedgraft.client.evidence.release import HeldRelease
from fedgraft.client.governance.plugins import demand_plugins, only_listed
from fedgraft.client.governance.release.held_answers import HeldAnswer
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.sessions import Models, Session
from fedgraft.common.base.errors import PolicyError, StudyError
from fedgraft.common.plugins.installed import digest_of
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.plugins.registry import Kind, load
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.study.study import Study
from helpers.plugins import EXAMPLE, fresh, install, make_wheel, wheel_of
from helpers.site_home import OPEN, Hospital, study

assert fresh
Command = Callable[..., tuple[int, str, str]]
MODEL = {"backbone": "patch_mixer"}
WEIGHTS = "slim-ctmr-synthetic"
NAMED = "fedgraft-example==1.0.0"


@pytest.fixture
def site(tmp_path: Path, fresh: pytest.MonkeyPatch) -> Path:
    """Where the example is installed."""
    folder = install(wheel_of(EXAMPLE, tmp_path / "wheels"), tmp_path / "packages")
    fresh.syspath_prepend(folder)
    return folder


METHOD = {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8}}


def asked(**changes: Any) -> Study:
    return study(model=MODEL, method=METHOD, plugins=[NAMED], **changes)


def refusal(policy: SitePolicy, asked: Study) -> tuple[Code, str]:
    with pytest.raises(Refused) as caught:
        demand_plugins(policy, asked)
    assert "fedgraft_example" not in sys.modules, "nothing may be imported before it is allowed"
    return caught.value.code, caught.value.why


def listing(digest: str | None = None, name: str = "Fedgraft_Example") -> SitePolicy:
    return SitePolicy(plugins={name: digest or digest_of("fedgraft-example")})


def test_what_the_policy_lists_may_run(site: Path) -> None:
    demand_plugins(listing(), asked())
    assert "fedgraft_example" not in sys.modules


def test_what_it_does_not_list_is_refused(site: Path) -> None:
    code, why = refusal(SitePolicy(), asked())
    assert code is Code.PLUGIN_NOT_LISTED
    assert "fedgraft-example==1.0.0 is none of `plugins` in the policy. See `fedgraft site plugins`" in why


def test_a_study_that_keeps_quiet_about_what_it_uses_is_refused(site: Path) -> None:
    code, why = refusal(listing(), study(model=MODEL))
    assert (code, why) == (Code.PLUGIN_NOT_LISTED, "the study uses fedgraft-example==1.0.0 without naming it")


def test_another_version_is_refused(site: Path) -> None:
    code, why = refusal(listing(), study(model=MODEL, plugins=["fedgraft-example==2.0.0"]))
    assert (code, why) == (Code.PLUGIN_VERSION, "the study names fedgraft-example==2.0.0, and here is 1.0.0")


def test_what_is_not_installed_is_refused(tmp_path: Path) -> None:
    code, why = refusal(listing("0" * 64), asked())
    assert (code, why) == (Code.PLUGIN_VERSION, "the study names fedgraft-example==1.0.0, and here is none")


def test_other_content_is_refused(site: Path) -> None:
    wanted = digest_of("fedgraft-example")
    backbone = site / "fedgraft_example" / "backbone.py"
    backbone.write_text(backbone.read_text() + "# one line more\n")
    code, why = refusal(listing(wanted), asked())
    assert code is Code.PLUGIN_DIGEST
    assert "fedgraft_example/backbone.py is not what was installed" in why
    record = site / "fedgraft_example-1.0.0.dist-info" / "RECORD"
    record.write_text("".join(line.partition(",")[0] + ",,\n" for line in record.read_text().splitlines()))
    code, why = refusal(listing(wanted), asked())
    assert code is Code.PLUGIN_DIGEST
    assert wanted in why


def test_what_runs_is_what_was_allowed_and_not_what_replaced_it_since(site: Path, tmp_path: Path) -> None:
    """A site's process that has imported one version goes on to run it, whatever pip does meanwhile."""
    load(Kind.BACKBONES, "patch_mixer")
    install(wheel_of(EXAMPLE, tmp_path / "new", "1.0.1"), site)
    for path in (site / "fedgraft_example-1.0.0.dist-info").iterdir():
        path.unlink()
    (site / "fedgraft_example-1.0.0.dist-info").rmdir()
    with pytest.raises(Refused, match=Code.PLUGIN_DIGEST) as caught:
        demand_plugins(listing(), study(model=MODEL, plugins=["fedgraft-example==1.0.1"]))
    assert "was replaced after this process had loaded it. Start this process again" in caught.value.why


def test_two_that_bring_one_name_are_refused(site: Path, tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    points = {"fedgraft.backbones": {"patch_mixer": "own_nets:Net"}}
    other = make_wheel(tmp_path / "wheels", "own-nets", "1.0", points, {"own_nets.py": b""})
    fresh.syspath_prepend(install(other, tmp_path / "other"))
    code, why = refusal(listing(), asked())
    assert code is Code.PLUGIN_NOT_LISTED
    assert "own-nets==1.0 and fedgraft-example==1.0.0 both have a backbone 'patch_mixer'" in why


def test_a_file_of_the_coordinators_machine_is_nothing_that_a_site_has(tmp_path: Path) -> None:
    local = Plugin(distribution="my_nets.py", version="sha256:" + "a" * 64)
    code, why = refusal(SitePolicy(plugins={"my_nets.py": "a" * 64}), study(model=MODEL, plugins=[local]))
    assert code is Code.PLUGIN_VERSION
    assert why.endswith("and here is none")


def test_a_loss_is_code_as_well(site: Path) -> None:
    local = {"epochs": 1, "batch_size": 8, "losses": [{"kind": "focal", "options": {"gamma": 2.0}}]}
    wanted = study(method={"name": "fedavg", "rounds": 2, "local": local}, plugins=[NAMED])
    assert refusal(SitePolicy(), wanted)[0] is Code.PLUGIN_NOT_LISTED
    assert refusal(listing("0" * 64), wanted)[0] is Code.PLUGIN_DIGEST
    demand_plugins(listing(), wanted)
    assert refusal(listing(), wanted.model_copy(update={"plugins": ()}))[0] is Code.PLUGIN_NOT_LISTED


def test_a_study_that_loads_code_while_it_is_read_is_stopped_there(
    tmp_path: Path, fresh: pytest.MonkeyPatch, hospital: Hospital, command: Command
) -> None:
    """What a method's keys are its class says, so a study of one cannot even be read without its code."""
    points = {"fedgraft.methods": {"sly": "own_sly:Sly"}}
    body = b"import pathlib\npathlib.Path(__file__ + '.ran').touch()\n"
    folder = install(make_wheel(tmp_path / "wheels", "own-sly", "1.0", points, {"own_sly.py": body}), tmp_path / "here")
    fresh.syspath_prepend(folder)
    file = tmp_path / "study.yaml"
    local = {"epochs": 1, "batch_size": 8, "methods": [{"kind": "sly"}]}
    plain = study().model_dump(mode="json", exclude={"plan"}) | {"method": {"name": "fedavg", "local": local}}
    for extra in ({}, {"plugins": ["own-sly==1.0"]}):
        file.write_text(yaml.safe_dump(plain | extra))
        with only_listed(SitePolicy()), pytest.raises(Refused, match=Code.PLUGIN_NOT_LISTED):
            Study.read(file)
        for words in (("review", file), ("approve", file), ("check", file)):
            code, _, said = command("site", words[0], words[1], "--home", hospital.home)
            assert (code, "own-sly==1.0 is none of `plugins` in the policy" in said) == (1, True), said
    assert not (folder / "own_sly.py.ran").exists()


@pytest.fixture
def sly_reader(tmp_path: Path, fresh: pytest.MonkeyPatch, hospital: Hospital) -> Path:
    """The site's file names a reader of others, which leaves a mark when it is run; the mark."""
    points = {"fedgraft.readers": {"sly": "own_reader:SLY"}}
    body = (
        b"import pathlib\npathlib.Path(__file__ + '.ran').touch()\n"
        b"from fedgraft.client.data.kinds import KINDS as k\nSLY = k['dicom']\n"
    )
    wheel = make_wheel(tmp_path / "wheels", "own-reader", "1.0", points, {"own_reader.py": body})
    folder = install(wheel, tmp_path / "here")
    fresh.syspath_prepend(folder)
    write_site(hospital, kind="sly")
    return folder / "own_reader.py.ran"


def write_site(hospital: Hospital, listed: dict[str, str] | None = None, **cohort: str) -> None:
    file = hospital.home / "site.yaml"
    content = yaml.safe_load(file.read_text())
    content["cohort"] |= cohort
    content["policy"] = OPEN | ({"plugins": listed} if listed else {})
    file.write_text(yaml.safe_dump(content))


def test_a_reader_that_the_sites_file_names_is_code_as_well(
    sly_reader: Path, hospital: Hospital, command: Command, tmp_path: Path
) -> None:
    """Whoever looks at a study, at data, makes features or asks a model; and the running site, whoever asks it."""
    file = tmp_path / "study.yaml"
    file.write_text(study().to_yaml())
    embed = ("embed", "--weights", WEIGHTS, "--out", tmp_path / "f.npz")
    says = "own-reader==1.0 is none of `plugins` in the policy. See `fedgraft site plugins`"
    typed: list[tuple[object, ...]] = [
        ("site", *words, "--home", hospital.home)
        for words in (("review", file), ("approve", file), ("check", file), ("check",), embed)
    ]
    typed += [("predict", WEIGHTS, hospital.data / "dicom", "--out", tmp_path / "said", "--cohort", hospital.home)]
    for words in typed:
        code, _, said = command(*words)
        assert (code, says in " ".join(said.split())) == (1, True), said
    running = Session(hospital.home / "site.yaml", Models())
    with pytest.raises(Refused, match=Code.PLUGIN_NOT_LISTED):
        running.site(study())
    running.close()
    write_site(hospital, {"own-reader": "0" * 64})
    running = Session(hospital.home / "site.yaml", Models())
    with pytest.raises(Refused, match=Code.PLUGIN_DIGEST):
        running.site(study())
    running.close()
    assert not sly_reader.exists(), "nothing may be imported before it is allowed"


def test_who_signs_a_release_runs_no_code_that_is_not_listed_by_then(site: Path, hospital: Hospital) -> None:
    """What the site trained with was listed; what is installed now is another, or is listed no more."""
    config = read_site(hospital.home)
    policy = config.policy.model_copy(update={"release": "hold", "release_epsilon_max": 1.0})
    held = HeldAnswer(hospital.home, 1, {"stage": "fedavg"}, "0" * 64, None)
    one = HeldRelease(hospital.home, config.model_copy(update={"policy": policy}), held, asked())
    with pytest.raises(PolicyError, match="is none of `plugins` in the policy"):
        one.unmet()
    assert "fedgraft_example" not in sys.modules


def test_who_asks_what_a_study_would_cost_runs_none_of_its_code(
    site: Path, hospital: Hospital, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(asked().to_yaml())
    code, _, said = command("site", "budget", hospital.home, "--study", tmp_path / "study.yaml", "--patients", "100")
    assert (code, "is none of `plugins` in the policy" in " ".join(said.split())) == (1, True), said
    assert "fedgraft_example" not in sys.modules


def test_a_reader_that_the_policy_lists_reads(sly_reader: Path, hospital: Hospital) -> None:
    write_site(hospital, {"own-reader": digest_of("own-reader")})
    running = Session(hospital.home / "site.yaml", Models())
    running.site(study())
    running.close()
    assert sly_reader.exists()


def test_a_name_of_fedgrafts_is_fedgrafts_whoever_else_has_it(tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    points = {"fedgraft.backbones": {"slim_resnet": "own_nets:Net"}}
    wheel = make_wheel(tmp_path / "wheels", "own-nets", "1.0", points, {"own_nets.py": b"raise SystemExit\n"})
    fresh.syspath_prepend(install(wheel, tmp_path / "packages"))
    demand_plugins(SitePolicy(), study())


def test_words_that_are_no_digest_are_no_policy() -> None:
    with pytest.raises(ValueError, match="plugins"):
        SitePolicy.model_validate({"plugins": {"fedgraft-example": "any"}})


@pytest.mark.slow
def test_the_operator_is_told_what_to_write_and_can_then_approve(
    site: Path, hospital: Hospital, command: Command, tmp_path: Path
) -> None:
    file, config = tmp_path / "study.yaml", hospital.home / "site.yaml"
    file.write_text(asked().to_yaml())
    exit_code, _, said = command("site", "approve", file, "--home", hospital.home)
    assert exit_code == 1
    assert "fedgraft-example==1.0.0 is none of `plugins` in the policy" in said
    assert "fedgraft_example" not in sys.modules
    exit_code, said, _ = command("site", "plugins", "--home", hospital.home)
    assert exit_code == 0
    assert "fedgraft-example 1.0.0 (backbones: patch_mixer" in said
    digest = digest_of("fedgraft-example")
    assert f"plugins:\n  fedgraft-example: {digest}" in said
    assert "fedgraft_example" not in sys.modules
    content = yaml.safe_load(config.read_text())
    content["policy"] = OPEN | {"plugins": {"fedgraft-example": digest}}
    config.write_text(yaml.safe_dump(content))
    (found,) = json.loads(command("site", "plugins", "--home", hospital.home, "--json")[1])
    assert (found["allowed"], found["listed"]) == (True, digest)
    exit_code, said, errors = command("site", "approve", file, "--home", hospital.home)
    assert exit_code == 0, errors
    assert "Model: patch_mixer from random entries" in said
    assert "with the code installed here and no other: fedgraft, and fedgraft-example==1.0.0" in said


def test_the_coordinator_is_told_what_the_study_must_name(site: Path) -> None:
    from fedgraft.common.checks.explain import check_study

    for plugins, says in (
        ([], r"model\.backbone: the backbone 'patch_mixer' is of fedgraft-example==1\.0\.0, which .* add `plugins: \["),
        (["fedgraft-example==2.0"], r"plugins\.0: is fedgraft-example==2\.0, but here is fedgraft-example==1\.0\.0"),
        ([NAMED, "fedgraft-exmple==1.0.0"], r"plugins\.1: .* is not here; did you mean fedgraft-example\?"),
        ([NAMED, "numpy==" + __import__("numpy").__version__], r"plugins\.1: nothing in the study is of numpy"),
    ):
        with pytest.raises(StudyError, match=says):
            check_study(study(model=MODEL, method=METHOD, plugins=plugins), "study.yaml")
    check_study(asked(), "study.yaml")
