"""What metrics are called where people read them, and which way is better."""

from __future__ import annotations

TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "recall": "recall",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
    "mae": "MAE",
    "rmse": "RMSE",
    "bias": "bias",
    "r2": "R²",
    "dice": "Dice",
    "dice_pooled": "Dice of all pixels",
    "hd95_mm": "HD95 (mm)",
    "missed": "missed",
    "alarms": "false alarms",
    "loss": "loss",
}
LOWER_IS_BETTER = frozenset({"brier", "ece", "loss", "mae", "rmse", "hd95_mm", "missed", "alarms"})
NEARER_0_IS_BETTER = frozenset({"bias"})


def title(key: str) -> str:
    """A metric's name as reports print it."""
    return TITLES.get(key, key.replace("_", " "))
