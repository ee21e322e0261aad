"""Weight soups: the plain mean of finished models of one backbone, which costs no more to run than one of them.

Wortsman et al. 2022, "Model soups". It holds for models that began from the same weights: others meet nowhere. Running
statistics are averaged as well, though those of the mean model are others: let a stage recalibrate them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import WeightsError
from fedgraft.common.base.files import home
from fedgraft.common.models.weights import WeightsManifest, demand_id, load_for, save_weights
from fedgraft.common.study.model_spec import ENSEMBLE

_ALIKE = ("backbone", "base_models", "input", "table", "classes", "tasks", "plugins")
"""What the manifests must agree on for a mean to make sense."""


def soup(refs: Sequence[str], name: str) -> tuple[WeightsManifest, Path]:
    """Write the mean of some weights as new ones in fedgraft's home. WeightsError if they do not fit together."""
    if len(refs) < 2:
        raise WeightsError("A soup needs two finished models or more.")
    demand_id(name)
    folder = home() / "weights" / name
    if folder.exists():
        raise WeightsError(f"{folder}: is there already.", fix="Choose another --id.")
    demand_place(folder)
    found = [load_for(ref, None) for ref in refs]
    (first, arrays), others = found[0], found[1:]
    if first.backbone == ENSEMBLE:
        raise WeightsError(
            f"{refs[0]}: is an ensemble, whose base models have no common start.", fix="Name its base models."
        )
    for ref, (manifest, own) in zip(refs[1:], others, strict=True):
        wrong = [key for key in _ALIKE if getattr(manifest, key) != getattr(first, key)]
        wrong += [key for key in sorted(set(arrays) | set(own)) if _form(arrays, key) != _form(own, key)]
        if wrong:
            raise WeightsError(f"{ref}: differs from {refs[0]} in {', '.join(wrong)}, so there is no mean of the two.")
    manifests = [manifest for manifest, _ in found]
    mean = {key: _mean([own[key] for _, own in found]) for key in arrays}
    facts: dict[str, Any] = first.model_dump(exclude={"sha256", "keys", "format"}) | {
        "id": name,
        "trained_on": " and ".join(dict.fromkeys(one.trained_on for one in manifests)),
        "licence": " and ".join(dict.fromkeys(one.licence for one in manifests)),
        "synthetic": any(one.synthetic for one in manifests),
        "how": f"mean of {', '.join(f'{one.id} ({one.sha256[:12]})' for one in manifests)}",
        "held_out": first.held_out if len({one.held_out for one in manifests}) == 1 else "",
    }
    return save_weights(folder, mean, facts), folder


def _form(arrays: dict[str, np.ndarray], key: str) -> tuple[Any, ...] | None:
    return (arrays[key].shape, arrays[key].dtype) if key in arrays else None


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """In float64, and then as it was; whole numbers stay whole."""
    mean = np.mean([array.astype(np.float64) for array in arrays], axis=0)
    kind = arrays[0].dtype
    return np.asarray(np.rint(mean) if kind.kind in "iu" else mean, kind)
