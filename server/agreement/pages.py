"""The page of an agreement on disk: as HTML that needs no network and no script, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedgraft.common.agreement.agreement import AGREEMENT, SupplyAgreement
from fedgraft.common.base.files import make_folder, write_atomic, write_json
from fedgraft.common.study.study import Study
from fedgraft.server.agreement.tables import SupplyPage, supply_page
from fedgraft.server.dossier.document import markdown_row, markdown_text

_WELL = "Nothing stands against the study, by what the sites told."


def write_agreement(study: Study, agreement: SupplyAgreement, out: Path) -> tuple[Path, Path, Path]:
    """Write agreement.json, .html and .md into the folder `out`."""
    make_folder(out)
    page = supply_page(study, agreement)
    paths = out / AGREEMENT, out / "agreement.html", out / "agreement.md"
    points = [{"kind": point.kind, "text": point.text} for point in page.points]
    write_json(paths[0], agreement.content() | {"verdict": points})
    write_atomic(paths[1], as_html(page).encode("utf-8", "replace"))
    write_atomic(paths[2], as_markdown(page).encode("utf-8", "replace"))
    return paths


def as_html(page: SupplyPage) -> str:
    """One page that needs no network and no script; names from sites are never markup."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("agreement.html.jinja").render(page=page, well=_WELL)


def as_markdown(page: SupplyPage) -> str:
    """The same as Markdown."""
    return "\n".join(_lines(page)).rstrip() + "\n"


def _lines(page: SupplyPage) -> Iterator[str]:
    yield from (f"# {markdown_text(page.title)}", "")
    for text in page.intro:
        yield from (markdown_text(text), "")
    yield from ("## Verdict", "")
    yield from (f"- **{point.kind}**: {markdown_text(point.text)}" for point in page.points)
    if not any(point.kind == "against" for point in page.points):
        yield from ("", _WELL)
    for title, table in page.tables:
        yield from ("", f"## {title}", "", markdown_row(table.columns))
        yield markdown_row(["---"] * len(table.columns), plain=False)
        yield from (markdown_row(line.cells) for line in table.rows)
