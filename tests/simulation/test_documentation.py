"""The documentation: every key has a meaning, the site builds without a broken link, what pages type works."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel
from typer.main import get_command

from conftest import Command
from fedgraft import cli
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.common.base.value import Value
from fedgraft.common.study.study import Study
from fedgraft.server.provisioning.consortium import Consortium
from fedgraft.server.watch.login.page_settings import PageSettings
from fedgraft.simulations.compare.question import Question
from fedgraft.simulations.phantoms.scenario import Scenario

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FILES = (Study, Question, SiteConfig, Scenario, Consortium, PageSettings)
PAGES = (
    "tutorials/first_study.md",
    "how_to/agree_first.md",
    "how_to/hand_on.md",
    "how_to/price_privacy.md",
    "how_to/data_protection.md",
)
"""Pages whose commands are typed here, one after the other in one folder, as somebody who reads them would."""


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs" / "reference_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
def test_every_key_of_every_file_has_a_meaning(reference: ModuleType, kind: type[BaseModel]) -> None:
    nameless = [
        f"{model.__name__}.{key}"
        for model in reference.models_below(kind)
        for key, meaning in reference.meanings_of(model).items()
        if not meaning and key != (reference.told_by(model) or ("",))[0]
    ]
    assert nameless == []


def test_a_key_without_a_meaning_is_found(reference: ModuleType) -> None:
    class Odd(Value):
        """Says what `told` is."""

        told: int = 1
        untold: int = 2
        below: int = 3
        """Stands below."""

    assert reference.meanings_of(Odd) == {"told": "Says what `told` is.", "untold": "", "below": "Stands below."}


def test_every_command_says_what_it_does_and_takes(reference: ModuleType) -> None:
    silent = []
    for path, command in reference.commands_below(get_command(cli.app), ("fedgraft",)):
        silent += [] if command.help else [" ".join(path)]
        silent += [f"{' '.join(path)} {taken.name}" for taken in command.params if not getattr(taken, "help", None)]
    assert [one for one in silent if not one.endswith(" help")] == []


@pytest.mark.slow
def test_keys_that_take_other_keys_lead_there(reference: ModuleType) -> None:
    page = reference.keys_page(Study, "Keys", "All of them.")
    headings = {reference.anchor(title) for title in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    links = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert len(links) > 20
    assert links <= headings


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))  # strict: it raises
    page = (tmp_path / "site" / "reference" / "api.html").read_text(encoding="utf-8")
    assert all(f'id="fedgraft.{place}' in page for place in ("common.study.study.Study", "simulations.api.simulate"))


def type_all(page: str, command: Command) -> dict[str, str]:
    """Type a page's commands, in their order, and what each says; variables stand for what they are, as in a shell."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    typed = [line.removeprefix("$ fedgraft ") for block in blocks for line in block.splitlines()]
    assert typed
    said = {}
    for line in typed:
        code, said[line], err = command(*map(os.path.expandvars, shlex.split(line)))
        assert code == 0, f"{page}: {line}: {err}"
    return said


@pytest.mark.slow
@pytest.mark.skipif("FEDGRAFT_REAL_DATA" not in os.environ, reason="$FEDGRAFT_REAL_DATA is not set")
def test_what_the_page_on_chest_x_rays_types_works(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the page says comes out: the two hospitals are not to train one model."""
    monkeypatch.setenv("FEDGRAFT_HOME", str(tmp_path / "home"))  # weights are unpacked there
    said = type_all("tutorials/chest_xrays.md", command)
    (advised,) = (text for line, text in said.items() if line.startswith("study suggest"))
    assert "Let each site train alone, and do not federate" in " ".join(advised.split())
    assert (tmp_path / "runs" / "xrays" / "report.html").is_file()
    (question,) = json.loads((tmp_path / "runs" / "compared" / "compare.json").read_text())["questions"]
    assert [row["arm"] for row in question["rows"]] == ["local", "fedavg", "clusters", "thumbnail"]


@pytest.mark.slow
def test_what_the_pages_type_works(command: Command, tmp_path: Path) -> None:
    for page in PAGES:
        type_all(page, command)
    assert (tmp_path / "asked" / "agreement.html").is_file()
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert (tmp_path / "said" / "predictions.csv").is_file()
    assert (tmp_path / "handed" / "onnx" / "model.json").is_file()
    assert (tmp_path / "runs" / "tracked" / "rounds.csv").is_file()
    assert (tmp_path / "runs" / "first" / "dossier" / "dossier.html").is_file()
