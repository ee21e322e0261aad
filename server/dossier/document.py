"""A document of chapters, sections and blocks, and its form as Markdown. Names from sites are never markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedgraft.server.report.tables import ReportTable, TableLine


@dataclass(frozen=True)
class Fact:
    """A sentence that the run shows."""

    text: str


@dataclass(frozen=True)
class Missing:
    """What a person has to write, or the run does not show."""

    text: str


Block = Fact | Missing | ReportTable


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Chapter:
    """A document of its own within the dossier."""

    title: str
    intro: str
    sections: tuple[Section, ...]

    def missing(self) -> Iterator[tuple[str, str]]:
        """Section and text of all that is missing."""
        for section in self.sections:
            yield from ((section.title, block.text) for block in section.blocks if isinstance(block, Missing))


@dataclass(frozen=True)
class Dossier:
    """All chapters about one run."""

    title: str
    intro: tuple[str, ...]
    chapters: tuple[Chapter, ...]

    def missing(self) -> list[tuple[str, str, str]]:
        """Chapter, section and text of all that is missing, in order."""
        return [(chapter.title, *gap) for chapter in self.chapters for gap in chapter.missing()]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> ReportTable:
    """A plain table of text."""
    return ReportTable(tuple(columns), tuple(TableLine(tuple(row)) for row in rows), words)


def as_markdown(dossier: Dossier) -> str:
    """The whole as Markdown: headings, paragraphs, pipe tables; what is missing is marked so."""
    lines = [f"# {markdown_text(dossier.title)}", ""]
    lines += [line for text in dossier.intro for line in (markdown_text(text), "")]
    lines += ["## What is missing", ""]
    lines += [
        f"- **{markdown_text(chapter)}**, {markdown_text(section)}: {markdown_text(text)}"
        for chapter, section, text in dossier.missing()
    ]
    for chapter in dossier.chapters:
        lines += ["", f"## {markdown_text(chapter.title)}", "", markdown_text(chapter.intro)]
        for section in chapter.sections:
            lines += ["", f"### {markdown_text(section.title)}", ""]
            for block in section.blocks:
                lines += [*_block(block), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _block(block: Block) -> list[str]:
    match block:
        case Fact():
            return [markdown_text(block.text)]
        case Missing():
            return [f"> **Missing.** {markdown_text(block.text)}"]
        case ReportTable():
            head = [markdown_row(block.columns), markdown_row(["---"] * len(block.columns), plain=False)]
            return [*head, *(markdown_row(line.cells) for line in block.rows)]


def markdown_row(cells: Sequence[str], *, plain: bool = True) -> str:
    """A line of a pipe table."""
    return "| " + " | ".join(markdown_text(cell) if plain else cell for cell in cells) + " |"


def markdown_text(words: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(words, quote=False))
    return "<br>".join(part.strip() for part in escaped.splitlines()) or " "
