"""TensorBoard's curves: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fedgraft.common.study.study import Study
from fedgraft.server.tracking.numbers import numbers
from fedgraft.server.tracking.tracker import Row


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

    def end(self, run: Path, result: Row | None) -> None:  # noqa: ARG002 - as all trackers
        """Its status as text."""
        said = "broken off" if result is None else f"{result['status']}: {result['headline']}"
        self._writer.add_text("status", said)
        self._writer.close()
