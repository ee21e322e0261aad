"""A plan with a stage of nearly every kind, for what must hold whatever carries the messages."""

from __future__ import annotations

from typing import Any

MANY_KINDS: list[dict[str, Any]] = [
    {
        "name": "probe",
        "local": {"kind": "statistics", "precision": "single"},
        "share": "heads",
        "aggregate": {"kind": "ridge", "ridge_penalty": "loso"},
    },
    {
        "name": "train",
        "where": "labelled",
        "local": {
            "kind": "gradient",
            "steps": 2,
            "batch_size": 8,
            "methods": [{"kind": "scaffold"}],
        }
        | {"optimiser": "sgd", "momentum": 0.0, "lr": 0.01},
        "share": "all",
        "aggregate": {"kind": "mean"},
        "rounds": 2,
    },
    {
        "name": "remember",
        "where": "labelled",
        "local": {
            "kind": "gradient",
            "steps": 2,
            "batch_size": 8,
            "lr": 0.01,
            "optimiser": "sgd",
            "methods": [{"kind": "feddyn"}, {"kind": "fedproto"}],
        },
        "share": "all",
        "aggregate": {"kind": "mean"},
        "rounds": 2,
    },
    {
        "name": "step",
        "local": {"kind": "statistics", "of": "residuals"},
        "share": "heads",
        "aggregate": {"kind": "newton", "ridge_penalty": 0.1},
        "rounds": 2,
    },
    {
        "name": "calibrate",
        "local": {"kind": "statistics", "of": "answers", "split": "val"},
        "share": "heads",
        "aggregate": {"kind": "temper"},
    },
    {"name": "describe", "local": {"kind": "statistics"}, "aggregate": {"kind": "moments"}},
    {"name": "distances", "local": {"kind": "statistics", "of": "distances"}, "aggregate": {"kind": "threshold"}},
    {"name": "adapt", "local": {"kind": "recalibrate", "batch_size": 8}, "keep": "norm_stats"},
]
