"""A finished run as a value: its figures, its rounds, its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, read_json
from fedgraft.common.config.suggest import instead
from fedgraft.common.study.study import Study
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.server.tracking.numbers import numbers
from fedgraft.simulations.api.frames import data_frame

if TYPE_CHECKING:
    from fedgraft.simulations.api.trained_model import TrainedModel

Row = Mapping[str, Any]


class History(Sequence[Row]):
    """A run's exchanges in order, each as a mapping: the rounds of every stage, then the evaluation."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, at: int | slice) -> Row | tuple[Row, ...]:
        return self._rows[at]

    def __len__(self) -> int:
        return len(self._rows)

    def to_pandas(self) -> Any:
        """A DataFrame with one row an exchange, and a column for each number, as `cls/macro/auroc`.

        InputError if pandas is not installed.
        """
        return data_frame([_flat(row) for row in self._rows])


_PLAIN = ("exchange", "stage", "round", "split", "repeats")


def _flat(row: Row) -> dict[str, Any]:
    missing = ", ".join(f"{site}: {why}" for site, why in row["missing"].items())
    return {key: row.get(key) for key in _PLAIN} | {"missing": missing} | numbers(row)


@dataclass(frozen=True)
class Run:
    """A finished run in its folder."""

    path: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """All of `result.json`; docs/figures.md says what each figure is."""
        found: dict[str, Any] = read_json(self.path / "result.json")
        return found

    @cached_property
    def study(self) -> Study:
        """What the sites were asked."""
        return RunFolder(self.path).study()

    @property
    def status(self) -> str:
        """`completed`, or `incomplete` if sites were missing."""
        return str(self.result["status"])

    @property
    def headline(self) -> str:
        """Who took part, in words."""
        return str(self.result["headline"])

    @property
    def metrics(self) -> dict[str, Any]:
        """By task the figures of the final model on test cases: `sites`, `macro`, `pooled`, intervals and support."""
        found: dict[str, Any] = self.result["metrics"]
        return found

    @property
    def sites(self) -> dict[str, Any]:
        """By site what it said of its data, as far as its policy lets that out."""
        found: dict[str, Any] = self.result["sites"]
        return found

    @property
    def privacy(self) -> dict[str, Any]:
        """By site what the study has cost it."""
        found: dict[str, Any] = self.result["privacy"]
        return found

    @cached_property
    def history(self) -> History:
        """Exchange by exchange what happened."""
        return History(RunFolder(self.path).history())

    @property
    def report(self) -> Path:
        """The page with figures and curves."""
        return self.path / "report.html"

    def model(self, site: str | None = None) -> TrainedModel:
        """The aggregated model, or what `site` of a simulation makes of it with the entries that it has kept.

        InputError if there is no such site, or it keeps nothing.
        """
        from fedgraft.simulations.api.trained_model import TrainedModel  # who simulates need not ask the model

        return TrainedModel(str(self.path), self._folder_of(site))

    def export(self, to: str, out: Path | str, site: str | None = None) -> Path:
        """Write the model for other programs into the new folder `out`, as `fedgraft export` does; the folder.

        `to` is onnx, torchscript, safetensors or monai-bundle. InputError if `out` is in use or a package is missing.
        """
        from fedgraft.client.inference.command import exported

        return exported(str(self.path), to, Path(out), self._folder_of(site))

    def _folder_of(self, site: str | None) -> Path | None:
        if site is None:
            return None
        folder = self.path / "sites" / str(site)
        if not folder.is_dir():
            raise InputError(f"{self.path}: has no site {site!r} here{instead(str(site), self.sites)}.")
        return folder

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.status}, {self.headline}>"


def load_run(path: Path | str) -> Run:
    """The finished run in a folder, simulated or deployed. InputError if there is none, or it has not ended."""
    folder = Path(path)
    study = RunFolder(folder).study()
    if not is_there(folder / "result.json"):
        raise InputError(f"{folder}: the run of {study.name} has not ended.", fix="Continue it: resume, or --resume.")
    return Run(folder)
