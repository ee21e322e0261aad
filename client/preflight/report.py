"""What `site check` found: lines of constant words and numbers, and what to do about those that are not well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fedgraft.common.base.environment import fedgraft_version

SCHEMA = 1

Figures = Mapping[str, Any]


class Level(StrEnum):
    """How a line ended. Only `FAILS` keeps a site from taking part."""

    FINE = "ok"
    NOTE = "note"
    FAILS = "fails"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class FindingLine:
    """One thing that was looked at. `says`, `fix` and `figures` hold counts and words of fixed lists alone.

    Whatever names a file, a patient or a machine goes to `Findings.private`.
    """

    name: str
    level: Level
    description: str
    fix: str = ""
    figures: Figures = field(default_factory=dict)


@dataclass
class Findings:
    """What one part found: lines for everybody, and text for the people at the site alone."""

    lines: list[FindingLine] = field(default_factory=list)
    private: list[str] = field(default_factory=list)

    def fine(self, name: str, description: str, /, **figures: Any) -> None:
        """Add a line that says `ok`, with its figures."""
        self.lines.append(FindingLine(name, Level.FINE, description, figures=figures))

    def note(self, name: str, description: str, fix: str, /, **figures: Any) -> None:
        """The site can take part, but somebody should know."""
        self.lines.append(FindingLine(name, Level.NOTE, description, fix, figures))

    def fails(self, name: str, description: str, fix: str, /, **figures: Any) -> None:
        """The site cannot, or must not, take part as it is."""
        self.lines.append(FindingLine(name, Level.FAILS, description, fix, figures))

    def skipped(self, name: str, description: str) -> None:
        """Add a line that says `-`: `name` was not looked at, and why."""
        self.lines.append(FindingLine(name, Level.SKIPPED, description))


@dataclass(frozen=True)
class ReportPart:
    """One part of the check and how long it took."""

    name: str
    seconds: float
    findings: Findings


@dataclass(frozen=True)
class Report:
    """All parts. `study` is name and digest of the study that was checked against, if any."""

    study: tuple[str, str] | None
    parts: tuple[ReportPart, ...]

    @property
    def failing(self) -> int:
        """How many lines say FAILS; with any, the command ends with exit code 1."""
        return sum(line.level is Level.FAILS for part in self.parts for line in part.findings.lines)

    @property
    def private(self) -> list[str]:
        """What only the people at the site may read."""
        return [text for part in self.parts for text in part.findings.private]

    def content(self) -> dict[str, Any]:
        """The report as plain values, fit to be shared."""
        return {
            "schema": SCHEMA,
            "fedgraft": fedgraft_version(),
            "study": {"name": self.study[0], "digest": self.study[1]} if self.study else None,
            "failing": self.failing,
            "seconds": {part.name: round(part.seconds, 2) for part in self.parts},
            "lines": [
                {
                    "part": part.name,
                    "name": line.name,
                    "level": line.level.value,
                    "description": line.description,
                    "fix": line.fix,
                    "figures": dict(line.figures),
                }
                for part in self.parts
                for line in part.findings.lines
            ],
        }


def counted(count: int, one: str, many: str = "") -> str:
    """A count and its noun: "1 file", "3 files"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(counts: Mapping[str, int]) -> str:
    """Counts by word, the largest first: "CT 90, MR 10"."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{word} {count:,}" for word, count in order)
