"""Write the dossier of a run: the same document as HTML and as Markdown."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedgraft.common.base.files import make_folder, write_atomic
from fedgraft.server.dossier.data_protection import data_flow, impact_facts
from fedgraft.server.dossier.document import Dossier, Fact, Missing, as_markdown
from fedgraft.server.dossier.evidence import Evidence
from fedgraft.server.dossier.model_card import model_card
from fedgraft.server.dossier.technical_file import ai_act, medical_device

_INTRO = (
    "Made from the run's own files. What the run does not show is marked as missing, and is not guessed.",
    "Not a medical device: the model was not validated for any use.",
)


def write_dossier(run: Path) -> tuple[Path, Path]:
    """Write `dossier/dossier.html` and `.md` into the run's folder; InputError if the run is not finished."""
    dossier = dossier_of(Evidence.of(run))
    folder = run / "dossier"
    make_folder(folder)
    page, plain = folder / "dossier.html", folder / "dossier.md"
    write_atomic(page, as_html(dossier).encode("utf-8", "replace"))
    write_atomic(plain, as_markdown(dossier).encode("utf-8", "replace"))
    return page, plain


def dossier_of(evidence: Evidence) -> Dossier:
    """All chapters about a run."""
    chapters = (model_card, data_flow, impact_facts, ai_act, medical_device)
    return Dossier(f"Dossier of {evidence.study.name}", _INTRO, tuple(chapter(evidence) for chapter in chapters))


def as_html(dossier: Dossier) -> str:
    """One page that needs no network and no script."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["fact"] = lambda block: isinstance(block, Fact)
    environment.tests["missing"] = lambda block: isinstance(block, Missing)
    return environment.get_template("dossier.html.jinja").render(dossier=dossier)
