"""TensorBoard's curves: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedgraft.common.base.files import is_there, read_json
from fedgraft.common.study.study import Study
from fedgraft.server.tracking.numbers import numbers
from fedgraft.server.tracking.tracker import Row

_COMPARED = "compare.json"


class TensorBoardTracker:
    """A scalar for each number of a round, by the exchange; the study as text."""

    def begin(self, run: Path, study: Study) -> None:
        """Events go on in the same folder."""
        self._writer = SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("study", f"```\n{study.to_yaml()}\n```")

    def round(self, row: Row) -> None:
        """Shown at once."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["exchange"])
        self._writer.flush()

    def end(self, run: Path, result: Row | None) -> None:
        """Its status as text; of a comparison the figures of all arms, too."""
        said = "broken off" if result is None else f"{result['status']}: {result['headline']}"
        self._writer.add_text("status", said)
        if is_there(run / _COMPARED):
            for question in read_json(run / _COMPARED)["questions"]:
                self._writer.add_text(f"compare/{question['name']}", "\n".join(_table(question)))
        self._writer.close()


def _table(question: Row) -> Iterator[str]:
    """In Markdown, a line for each arm at each number of cases."""
    yield f"| arm | macro {question['title']} | minus {question['against']} | 95 % | verdict |"
    yield "|---|---|---|---|---|"
    for row in question["rows"]:
        apart = row["difference"] or {}
        name = f"{row['arm']}, {row['cases']}" if row["cases"] else row["arm"]
        figures = [(row["macro"] or {}).get("value"), *(apart.get(key) for key in ("value", "low", "high"))]
        macro, value, low, high = ("-" if one is None else f"{one:.3f}" for one in figures)
        yield f"| {name} | {macro} | {value} | {low} to {high} | {apart.get('verdict', '')} |"
