"""A run of MLflow, at the server or in the folder that MLFLOW_TRACKING_URI names, in the experiment `fedgraft`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow

from fedgraft.common.base.files import is_there, read_json, write_json
from fedgraft.common.models.cluster_models import FOLDER
from fedgraft.common.study.study import Study
from fedgraft.server.tracking.numbers import numbers
from fedgraft.server.tracking.tracker import ARM, Row

_EXPERIMENT, _MARK = "fedgraft", "mlflow.json"
_LEFT = ("model.safetensors", "model.json", "report.html", "result.json", "study.yaml")
_CONCLUDED = ("compare.html", "compare.json", "compare.csv")
"""What a comparison leaves; its arms are runs of their own below it."""
_PARENT = "mlflow.parentRunId"
_LONGEST, _AT_ONCE = 250, 100
_ODD = re.compile(r"[^\w./ -]")


class MlflowTracker:
    """Parameters from the study, a metric for each number of a round, and what the run leaves behind as artefacts."""

    def __init__(self) -> None:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)

    def begin(self, run: Path, study: Study) -> None:
        """A run that goes on is the same run there."""
        mark = run / _MARK
        if mark.exists():
            self._id = str(read_json(mark)["run_id"])
            return
        arm: dict[str, Any] = {"name": study.name, "within": "", "facts": {}}
        arm |= read_json(run / ARM) if is_there(run / ARM) else {}
        within = run / arm["within"] / _MARK
        tags = {"study_digest": study.digest}
        tags |= {_PARENT: str(read_json(within)["run_id"])} if is_there(within) else {}
        made = self._client.create_run(self._experiment, run_name=arm["name"], tags=tags)
        self._id = made.info.run_id
        write_json(mark, {"run_id": self._id})
        parameters = list(_flat({"compare": arm["facts"]} | study.model_dump(mode="json")))
        for start in range(0, len(parameters), _AT_ONCE):
            for key, value in parameters[start : start + _AT_ONCE]:
                self._client.log_param(self._id, _ODD.sub("_", key), value[:_LONGEST])

    def round(self, row: Row) -> None:
        """By the exchange as its step."""
        for name, value in numbers(row).items():
            self._client.log_metric(self._id, _ODD.sub("_", name), value, step=row["exchange"])

    def end(self, run: Path, result: Row | None) -> None:
        """Finished, or failed where sites were missing or the run was broken off."""
        if result is not None:
            self._client.set_tag(self._id, "status", f"{result['status']}: {result['headline']}")
            for path in (run / name for name in (*_LEFT, *_CONCLUDED)):
                if path.is_file():
                    self._client.log_artifact(self._id, str(path))
            if (run / FOLDER).is_dir():  # one for each cluster of sites
                self._client.log_artifacts(self._id, str(run / FOLDER), FOLDER)
        whole = result is not None and result["enough"]
        self._client.set_terminated(self._id, "FINISHED" if whole else "FAILED")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """A study's values by dotted keys, as `--set` takes them."""
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _flat(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(one, Mapping) for one in value):
        for at, below in enumerate(value):
            yield from _flat(below, f"{key}.{at}")
    else:
        yield key, str(value)
