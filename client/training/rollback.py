"""The way back for training that teaches itself: judged without labels, undone at the site."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedgraft.client.training.model.evaluate import BATCH
from fedgraft.client.training.model.loader import Loader, in_order
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.stages.training import Rollback


def guesses(local_model: LocalModel, loader: Loader) -> dict[str, np.ndarray]:
    """By task the class that the model names for each training case, with a label or without."""
    found: dict[str, list[np.ndarray]] = {task: [] for task in local_model.model.classes}
    local_model.model.eval()
    with torch.inference_mode():
        for batch in loader.batches(in_order(loader.splits["train"], BATCH)):
            for task, scores in local_model.model(batch.inputs).items():
                if task in found:
                    found[task].append(scores.argmax(dim=1).cpu().numpy())
    return {task: np.concatenate(parts) for task, parts in found.items()}


def holds(spec: Rollback, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> bool:
    """Whether the model still says much the same, and has not drifted to few classes, in every task."""
    return all(
        np.mean(before[task] == after[task]) >= spec.agreement
        and _spread(after[task]) >= spec.spread * _spread(before[task])
        for task in before
    )


def _spread(classes: np.ndarray) -> float:
    """The entropy, in nats, of the shares of the classes: 0 if all cases got one class."""
    shares = np.bincount(classes) / len(classes)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())
