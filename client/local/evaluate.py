"""Metric sums of the model as it is on one split of a site's cases."""

from __future__ import annotations

import numpy as np
import torch

from client.local.feed import Feed, in_order
from client.local.gradient import Diverged
from client.workbench import Workbench
from common.metrics import ClassificationSums

_BATCH = 128


def evaluate(bench: Workbench, feed: Feed, split: str) -> dict[str, ClassificationSums]:
    """Metric sums by task over the split's labelled cases. Raises Diverged if the model gives no finite numbers."""
    groups = in_order(feed.labelled(split), _BATCH)
    outputs: dict[str, list[np.ndarray]] = {task: [] for task in bench.model.heads}
    targets: dict[str, list[np.ndarray]] = {task: [] for task in bench.model.heads}
    bench.model.eval()
    with torch.inference_mode():
        for batch in feed.batches(groups):
            with torch.autocast("cuda", torch.bfloat16, enabled=bench.device.type == "cuda"):
                answers = bench.model(batch.inputs)
            for task, scores in answers.items():
                outputs[task].append(scores.float().cpu().numpy())
                targets[task].append(batch.targets[task].cpu().numpy())
    sums = {}
    for task, classes in bench.model.classes.items():
        if not groups:
            sums[task] = ClassificationSums.zero(classes)
            continue
        logits = np.concatenate(outputs[task])
        if not np.isfinite(logits).all():
            raise Diverged
        sums[task] = ClassificationSums.of(logits, np.concatenate(targets[task]))
    return sums
