"""Studies that are made up, so that a coordinator's lies meet every kind of stage and sum, whatever the audit is of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedgraft.client.attacks.measurement import Measurement
from fedgraft.common.study.study import Study
from fedgraft.simulations.audit.home.hospital import home_study
from fedgraft.simulations.audit.lying.courses import carried_out

_COLUMNS = 3
_LOCAL = {"kind": "gradient", "steps": 1, "batch_size": 8, "lr": 0.01}
_MEAN = {"kind": "mean"}
_HEADS: dict[str, Any] = {"name": "heads", "local": _LOCAL | {"train": "heads"}, "share": "heads", "aggregate": _MEAN}
_PULLED: dict[str, Any] = {
    "name": "pulled",
    "local": _LOCAL | {"losses": [{"kind": "supervised"}, {"kind": "proximal", "to": "pretrained"}]},
    "share": "all",
    "aggregate": _MEAN,
    "rounds": 2,
}
_BODY = {"roles": ["body"]}
_PERSONAL: dict[str, Any] = {"name": "personal", "local": _LOCAL | {"train": _BODY}, "keep": _BODY, "rounds": 2}


def carried_out_elsewhere(seed: int) -> Measurement:
    """How many lies sites fall for in studies with personal stages, and with sums over several sites."""
    found = [carried_out(study, seed) for study in _studies()]
    worst = max(found, key=lambda one: one.value)
    words = "; ".join(one.words for one in found if not one.holds) or found[0].words
    return Measurement(worst.value, 0.0, words)


def _studies() -> Iterator[Study]:
    more: dict[str, Any] = {"model": {"backbone": "table_mlp", "weights": None}, "evaluate": {"every": 1}}
    yield home_study(_COLUMNS, _PERSONAL, _HEADS, **more)
    yield home_study(_COLUMNS, _PULLED, _HEADS, **more, secure_aggregation=True)
