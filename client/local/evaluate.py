"""Metric sums of the model as it is on one split of a site's cases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from client.local.feed import Feed, in_order
from client.local.gradient import Diverged
from client.local.room import in_room
from client.workbench import Workbench
from common.metrics import ClassificationSums

BATCH = 128


Predictions = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By task logits (N, classes) and targets (N,)."""


def evaluate(bench: Workbench, feed: Feed, split: str) -> dict[str, ClassificationSums]:
    """Metric sums by task over the split's labelled cases. Raises Diverged if the model gives no finite numbers."""
    return {task: ClassificationSums.of(*pair) for task, pair in predictions(bench, feed, split).items()}


def predictions(bench: Workbench, feed: Feed, split: str, *, labelled: bool = True) -> Predictions:
    """What the model says of the split's cases, or its labelled ones, in order. Raises Diverged if it is not finite."""
    groups = in_order(feed.labelled(split) if labelled else feed.splits[split], BATCH)
    outputs: dict[str, list[np.ndarray]] = {task: [] for task in bench.model.heads}
    targets: dict[str, list[np.ndarray]] = {task: [] for task in bench.model.heads}
    bench.model.eval()
    body = feed.body(bench.model)
    with torch.inference_mode():
        for batch in feed.batches(groups):
            with torch.autocast("cuda", torch.bfloat16, enabled=bench.device.type == "cuda"):
                answers = in_room(body, batch.inputs)
            for task, scores in answers.items():
                outputs[task].append(scores.float().cpu().numpy())
                targets[task].append(batch.targets[task].cpu().numpy())
    found = {}
    for task, classes in bench.model.classes.items():
        logits = np.concatenate([np.zeros((0, classes), np.float32), *outputs[task]])
        if not np.isfinite(logits).all():
            raise Diverged
        found[task] = (logits, np.concatenate([np.zeros(0, np.int64), *targets[task]]))
    return found
