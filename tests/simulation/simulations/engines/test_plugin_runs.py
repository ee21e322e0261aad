"""Backbones of one's own in a simulation: typed in a session, in a file, or installed; here and in other processes."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fedgraft as fg
from fedgraft.common.base.errors import InputError, StudyError
from fedgraft.common.checks.check_plugins import pinned
from fedgraft.common.checks.explain import check_study
from fedgraft.common.plugins import registry
from fedgraft.common.study.study import Study
from fedgraft.simulations.compare.question import BUILT_IN
from fedgraft.simulations.engines.run import Engine, Hospitals
from helpers.plugins import EXAMPLE, fresh, install, make_wheel, wheel_of
from helpers.simulated import simulate

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")
MakeStudy = Callable[..., Study]
Command = Callable[..., tuple[int, str, str]]
METHOD = {"name": "fedavg", "rounds": 1, "local": {"steps": 2, "batch_size": 8, "lr": 0.003}}
FILE = """
import fedgraft as fg
from fedgraft_example.backbone import PatchMixer

fg.register_backbone("mine", PatchMixer)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example is installed."""
    folder = tmp_path_factory.mktemp("packages")
    return install(wheel_of(EXAMPLE, folder / "wheels"), folder / "here")


@pytest.fixture
def mine(packages: Path, tmp_path: Path, fresh: pytest.MonkeyPatch) -> Path:
    """A file with a backbone that is the installed one under another name."""
    fresh.syspath_prepend(packages)
    file = tmp_path / "my_nets.py"
    file.write_text(FILE)
    return file


@pytest.fixture
def two(hospitals: Hospitals) -> Hospitals:
    return replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in ("east", "north")})


def model_of(run: Path) -> str:
    return str(json.loads((run / "model.json").read_text())["sha256"])


@pytest.mark.slow
def test_a_file_an_installed_one_and_one_typed_in_a_session_give_the_same_model(
    make_study: MakeStudy, two: Hospitals, mine: Path, tmp_path: Path
) -> None:
    named = make_study(model={"backbone": "patch_mixer"}, plugins=["fedgraft-example==1.0.0"], method=METHOD)
    here = simulate(named, two, tmp_path / "here")
    pool = simulate(named, two, tmp_path / "pool", Engine(name="pool", workers=2))
    fg.load_plugin(mine)
    loaded = pinned(make_study(model={"backbone": "mine"}, method=METHOD))
    assert [plugin.distribution for plugin in loaded.plugins] == ["my_nets.py"]
    file = simulate(loaded, two, tmp_path / "file", Engine(name="pool", workers=2))
    assert model_of(here) == model_of(pool) == model_of(file)
    exec(compile(FILE.replace("mine", "typed"), "<cell>", "exec"), {"__name__": "__main__"})
    typed = pinned(make_study(model={"backbone": "typed"}, method=METHOD))
    assert model_of(simulate(typed, two, tmp_path / "typed")) == model_of(here)
    with pytest.raises(InputError, match="'typed' was registered in this session, and other processes do not know it"):
        simulate(typed, two, tmp_path / "not", Engine(name="pool", workers=2))


def test_a_site_with_rules_of_its_own_refuses_what_they_list_otherwise(
    make_study: MakeStudy, two: Hospitals, mine: Path, tmp_path: Path
) -> None:
    from fedgraft.simulations.engines.run import OPEN

    named = make_study(
        model={"backbone": "patch_mixer"},
        plugins=["fedgraft-example==1.0.0"],
        method=METHOD,
        rounds={"min_sites": 1, "quorum": 0.5},
    )
    strict = replace(two, policies={"north": OPEN.model_copy(update={"plugins": {"fedgraft-example": "0" * 64}})})
    result = json.loads((simulate(named, strict, tmp_path / "run") / "result.json").read_text())
    refused = [(one["site"], one["code"]) for one in result["refusals"]]
    assert ("north", "plugin_digest") in refused
    assert not [one for one in refused if one[0] == "east"]


def test_a_run_is_read_with_the_code_that_it_was_made_with_and_no_other(
    make_study: MakeStudy, two: Hospitals, mine: Path, tmp_path: Path, command: Command, fresh: pytest.MonkeyPatch
) -> None:
    fg.load_plugin(mine)
    run = simulate(pinned(make_study(model={"backbone": "mine"}, method=METHOD)), two, tmp_path / "run")
    images = two.cohorts["east"].root / "left"
    registry = "fedgraft.common.plugins.registry."
    with fresh.context() as patch:
        for name in ("_registered", "_places"):
            patch.setattr(registry + name, type(getattr(__import__(registry[:-1], fromlist=["x"]), name))())
        code, _, said = command("predict", run, images, "--out", tmp_path / "none")
        assert (code, "needs my_nets.py==sha256:" in said and "--plugin" in said) == (2, True), said
        code, _, said = command("predict", run, images, "--out", tmp_path / "said", "--plugin", mine)
        assert code == 0, said
        mine.write_text(FILE + "# changed since\n")
        code, _, said = command("predict", run, images, "--out", tmp_path / "other", "--plugin", mine)
        assert (code, "and here is my_nets.py" in said or "and here is sha256:" in said) == (2, True), said


def test_what_is_loaded_in_vain_is_said(tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty.py", tmp_path / "broken.py"
    empty.write_text("x = 1\n")
    broken.write_text("import fedgraft\nraise ValueError('half a file')\n")
    for place, says in (
        (empty, r"empty\.py: registers nothing\. Let it call fg\.register_backbone"),
        (broken, r"broken\.py: ValueError: half a file"),
        (tmp_path / "none.py", r"none\.py: there is no such file"),
        ("no_such_module_here", "there is no such file or module"),
    ):
        with pytest.raises(InputError, match=says):
            fg.load_plugin(place)


def test_a_study_of_a_file_cannot_be_run_without_it_or_with_another(
    make_study: MakeStudy, mine: Path, command: Command, tmp_path: Path
) -> None:
    fg.load_plugin(mine)
    study = pinned(make_study(model={"backbone": "mine"}, method=METHOD))
    check_study(study, "study")
    mine.write_text(FILE + "# changed\n")
    fg.load_plugin(mine)
    assert pinned(make_study(model={"backbone": "mine"}, method=METHOD)).digest != study.digest
    with pytest.raises(StudyError, match=r"plugins\.0: is my_nets\.py==sha256:\w+, but here is my_nets\.py==sha256:"):
        check_study(study, "study")


BOTH = """
import torch
from torch import nn

import fedgraft as fg


@fg.register_backbone("own_net")
class Net(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.layer = nn.Conv2d(channels, 4, 3, stride=2)
        self.feature_dim = 4

    def forward(self, x):
        return self.layer(x).relu().mean((2, 3))


@fg.register_loss("own_loss")
class Loss:
    scope = "per_sample"
    requires = ("labels",)
    tasks = ("multiclass",)

    def __call__(self, *, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


def test_a_file_that_was_tried_out_goes_into_a_distribution_as_it_is(
    make_study: MakeStudy, tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    """With its decorators: what they register is what the entry points name, and no second plug-in of that name."""
    points = {"fedgraft.backbones": {"own_net": "own_code:Net"}, "fedgraft.losses": {"own_loss": "own_code:Loss"}}
    wheel = make_wheel(tmp_path / "wheels", "own-code", "1.0", points, {"own_code.py": BOTH.encode()})
    fresh.syspath_prepend(install(wheel, tmp_path / "here"))
    work = METHOD["local"] | {"losses": [{"kind": "own_loss"}]}  # type: ignore[operator]
    study = make_study(model={"backbone": "own_net"}, plugins=["own-code==1.0"], method=METHOD | {"local": work})
    check_study(study, "study")
    check_study(study, "study")


def test_arms_that_do_without_a_loss_of_ones_own_name_no_code_for_it(
    make_study: MakeStudy, tmp_path: Path, two: Hospitals
) -> None:
    """A preset has the losses of its method, so that a comparison with it must not fail for code that is not used."""
    exec(compile(BOTH, "<cell>", "exec"), {"__name__": "__main__"})
    work = METHOD["local"] | {"losses": [{"kind": "own_loss"}]}  # type: ignore[operator]
    study = pinned(make_study(model={"backbone": "own_net"}, method=METHOD | {"local": work}))
    assert [plugin.distribution for plugin in study.plugins] == ["session-own_net", "session-own_loss"]
    for name, wanted in (("study", 2), ("fedbn", 1), ("fedprox", 1)):
        arm = BUILT_IN[name].apply(study, "x")
        check_study(arm, name)
        assert len(arm.plugins) == wanted
    run = fg.load_run(simulate(study, two, tmp_path / "run"))
    assert (run.export("torchscript", tmp_path / "handed") / "model.json").is_file()
    with pytest.raises(InputError, match="there is no such form"):
        run.export("onyx", tmp_path / "none")


NAMES = """
import fedgraft as fg
from torch import nn


@fg.register_backbone("own_names")
class Größe(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.größe = nn.Conv2d(channels, 4, 3, stride=2)
        self.parts = nn.ModuleDict({"Ω": nn.Conv2d(4, 4, 3), "class": nn.Conv2d(4, 4, 1), 'a"b': nn.Conv2d(4, 4, 1)})
        self.feature_dim = 4

    def forward(self, x):
        x = self.größe(x)
        for part in self.parts.values():
            x = part(x).relu()
        return x.mean((2, 3))
"""


def test_parts_may_have_names_that_torchscript_has_no_words_for(
    make_study: MakeStudy, tmp_path: Path, two: Hospitals
) -> None:
    """Greek and German, a word of Python's, a quote: torch wrote such a file, and could not read it back."""
    exec(compile(NAMES, "<cell>", "exec"), {"__name__": "__main__"})
    study = pinned(make_study(model={"backbone": "own_names"}, method=METHOD, evaluate={"every": 0, "floor": 1}))
    run = fg.load_run(simulate(study, two, tmp_path / "run"))
    pixels = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
    whole = torch.jit.load(run.export("torchscript", tmp_path / "handed") / "model.pt")
    found = whole(torch.from_numpy(pixels)[:, None])["cls"]
    np.testing.assert_allclose(found, run.model().predict(pixels).answers["cls"], atol=1e-4)


def test_the_page_works_as_it_stands(command: Command, tmp_path: Path, fresh: pytest.MonkeyPatch) -> None:
    page = (EXAMPLE.parents[1] / "docs" / "how_to" / "plugins.md").read_text(encoding="utf-8")
    for kind, name in (("python", "my_own.py"), ("yaml", "my_study.yaml")):
        (tmp_path / name).write_text(page.partition(f"```{kind}\n")[2].partition("```")[0])
    typed = [line.removeprefix("$ fedgraft ").split() for line in page.splitlines() if line.startswith("$ fedgraft ")]
    for words in typed:
        code, said, errors = command(*words)
        assert code == 0, errors
    assert "smooth (amount 0.05)" in said
    (tmp_path / "pyproject.toml").write_text(textwrap.dedent(page.partition("```toml\n")[2].partition("```")[0]))
    fresh.syspath_prepend(install(wheel_of(tmp_path, tmp_path / "wheels"), tmp_path / "packages"))
    for kept in ("_registered", "_places"):
        fresh.setattr(registry, kept, type(getattr(registry, kept))())
    asked = Study.read(tmp_path / "my_study.yaml", "plugins=[my-own==1.0.0]")
    check_study(asked, "my_study.yaml")


@pytest.mark.ray
@pytest.mark.slow
def test_through_ray(
    make_study: MakeStudy, two: Hospitals, mine: Path, packages: Path, tmp_path: Path, fresh: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    fresh.setenv("PYTHONPATH", str(packages), prepend=":")
    fg.load_plugin(mine)
    study = pinned(make_study(model={"backbone": "mine"}, method=METHOD))
    here = simulate(study, two, tmp_path / "here")
    assert model_of(simulate(study, two, tmp_path / "ray", Engine(name="ray", workers=2))) == model_of(here)
