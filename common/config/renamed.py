"""Keys and values of files that have another name since 0.2: whoever writes the old one is told the new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS: Mapping[str, str] = {
    "merge": "aggregate",
    "masked": "secure_aggregation",
    "masks": "secure_aggregation",
    "masked_only": "secure_aggregation_only",
    "terms": "losses",
    "sigma": "noise_multiplier",
    "sigma_min": "noise_multiplier_min",
    "clip": "max_grad_norm",
    "clip_max": "max_grad_norm_limit",
    "sample": "sample_rate",
    "q_max": "sample_rate_max",
    "views": "augmentation_multiplicity",
    "epsilon_job": "epsilon_per_study",
    "lookahead": "inner_steps",
    "fallback": "rollback",
    "until": "early_stopping",
    "average": "weight_averaging",
    "joint": "joint_lambda",
    "flags": "ood_detection",
    "keep_sums": "retain_statistics",
    "strength": "ridge_penalty",
    "members": "base_models",
}
VALUES: Mapping[str, str] = {
    "anchor": "proximal",
    "control": "scaffold",
    "control_variate": "scaffold",
    "committee": "ensemble",
    "critic": "domain_discriminator",
    "member": "base_model",
    "members": "base_models",
    "masked": "secure_aggregation",
}
_MOVED: Mapping[str, str] = {"scaffold": ", which is one of local.methods and no loss"}
"""Where new names stand, if not where the old ones did."""
_WRONG_VALUE = ("literal_error", "enum", "union_tag_invalid")


def new_name(fault: Mapping[str, Any]) -> str:
    """What to say of a fault (as pydantic tells it) that is an old name; "" if it is something else."""
    name = str(fault["loc"][-1]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden" and name in KEYS:
        statistics = name == "clip" and "statistics" in fault["loc"]
        return f"was renamed to {'max_norm' if statistics else KEYS[name]}"
    if fault["type"] in _WRONG_VALUE:
        found = fault["input"]
        old = found.get("kind") if isinstance(found, Mapping) else found
        if isinstance(old, str) and old in VALUES:
            return f"{old} was renamed to {VALUES[old]}{_MOVED.get(VALUES[old], '')}"
    return ""
