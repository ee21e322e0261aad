"""Rules for the ridge penalty on real chest X-rays: macro AUROC on validation patients, those of the test left alone.

`python -m benchmarks.ridge_penalty slim` or `lite`, then perhaps how many pixels are left of an image's side (64), and
how many of them the backbone is shown (as many): `lite 64 224` enlarges. Two hospitals divided by patient into four
sites. Two patients of five are never looked at; of the others so many cases a site train, in three draws, and the rest
is validation.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from fedgraft.common.closed_form.closed_form import automatic_penalties, ridge_head
from fedgraft.common.closed_form.penalty import prior
from fedgraft.common.models.initialise import initialise
from fedgraft.common.study.study import Study, parse_study
from fedgraft.server.aggregation.ridge_penalty import choose

Floats = NDArray[np.float64]
DRAWS, CASES = 3, (30, 100, 150)
MODELS = {
    "slim": ("slim_resnet", "slim-ctmr-synthetic", {"normalise": "zscore"}),
    "lite": ("efficientnet_lite0", "imagenet-lite0", {"normalise": "fixed", "mean": [0.498], "std": [0.502]}),
}


def study(model: str, size: int) -> Study:
    """A study whose only use is its backbone."""
    backbone, weights, prepared = MODELS[model]
    return parse_study(
        {
            "name": "features",
            "tasks": [{"name": "cls", "classes": ["normal", "pneumonia"]}],
            "input": {"kind": "image", "size": size, "channels": 1, **prepared},
            "model": {"backbone": backbone, "weights": weights},
            "method": {"name": "ridge_probe"},
        },
        "benchmark",
    )


def features(model: str, files: list[Path], left: int, shown: int) -> Floats:
    """What the frozen backbone says of each image (N, d), made `left` pixels wide and then `shown`."""
    backbone = initialise(study(model, shown)).model.backbone.eval()
    found = []
    for file in files:
        image = Image.open(file).convert("L").resize((left, left), Image.Resampling.BILINEAR)
        pixels = np.asarray(image.resize((shown, shown), Image.Resampling.BILINEAR)) / 255
        scaled = (pixels - pixels.mean()) / pixels.std() if model == "slim" else (pixels - 0.498) / 0.502
        with torch.inference_mode():
            found.append(backbone(torch.tensor(scaled[None, None], dtype=torch.float32))[0].double().numpy())
    return np.stack(found)


def sites_of(hospital: list[str], patient: list[str]) -> dict[str, list[NDArray[np.int64]]]:
    """By site the cases of each of its patients, without the two of five that are left alone."""
    rng, found = np.random.default_rng(0), {}
    for name in sorted(set(hospital)):
        own = sorted({p for p, h in zip(patient, hospital, strict=True) if h == name})
        rng.shuffle(own)
        cases = [np.flatnonzero(np.array(patient) == p) for p in own[: round(0.6 * len(own))]]
        found |= {f"{name}_a": cases[::2], f"{name}_b": cases[1::2]}
    return found


def sums(x: Floats, y: NDArray[np.int64]) -> dict[str, np.ndarray]:
    """As a site sends them."""
    z = np.hstack([x, np.ones((len(x), 1))])
    return {"cls/gram": z.T @ z, "cls/cross": z.T @ np.eye(2)[y]}


def drawn(x: Floats, y: NDArray[np.int64], sites: dict[str, list[NDArray[np.int64]]], cases: int) -> dict[str, float]:
    """By rule the macro AUROC on validation patients, the mean over draws; the chosen penalty under `RULE penalty`."""
    found: dict[str, list[float]] = {}
    for draw in range(DRAWS):
        parts, rest = [], []
        for patients in sites.values():
            order = np.random.default_rng(draw).permutation(len(patients))
            so_far = np.cumsum([len(patients[at]) for at in order])
            cut = int(np.searchsorted(so_far, cases)) + 1
            train = np.concatenate([patients[at] for at in order[:cut]])
            rest.append(np.concatenate([patients[at] for at in order[cut:]] or [np.zeros(0, np.int64)]))
            parts.append(sums(x[train], y[train]))
        total = {key: np.sum([part[key] for part in parts], axis=0) for key in parts[0]}
        rules = {
            "0.1": 0.1,
            "features per case": prior([total["cls/gram"]]),
            "auto": automatic_penalties(total)["cls"],
            "loso": choose(parts)["cls"],
        }
        for rule, penalty in rules.items():
            weight, _ = ridge_head(total["cls/gram"], total["cls/cross"], penalty)
            scores = [(x[own] @ (weight[1] - weight[0]), y[own]) for own in rest if len(set(y[own])) == 2]
            found.setdefault(rule, []).append(float(np.mean([roc_auc_score(truth, said) for said, truth in scores])))
            found.setdefault(f"{rule} penalty", []).append(penalty)
    return {rule: float(np.mean(values)) for rule, values in found.items()}


def sizes(words: list[str]) -> tuple[int, int]:
    """How many pixels are left, and how many are shown."""
    left = int(words[0]) if words else 64
    return left, int(words[1]) if len(words) > 1 else left


def main() -> None:
    """Print a line per number of cases."""
    torch.set_num_threads(1)
    root = Path(os.environ["FEDGRAFT_REAL_DATA"], "cxr-pneumonia")
    with (root / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model, left, shown = sys.argv[1], *sizes(sys.argv[2:])
    x = features(model, [root / "images" / row["file"] for row in rows], left, shown)
    y = np.array([int(row["label"] == "pneumonia") for row in rows])
    sites = sites_of([row["site"] for row in rows], [row["patient"] for row in rows])
    for cases in CASES:
        told = drawn(x, y, sites, cases)
        print(f"{model}, {left} pixels shown as {shown}, {x.shape[1]} features, {cases} cases a site:", end=" ")
        print(", ".join(f"{rule} {value:.3f}" for rule, value in told.items()), flush=True)


if __name__ == "__main__":
    main()
