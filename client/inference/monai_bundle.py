"""The files of a MONAI bundle around a TorchScript model (docs.monai.io, "MONAI Bundle Specification")."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fedgraft.common.study.inputs import ImageInput


def bundle_files(given: ImageInput, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """By path the content of the bundle's files, but for the model's own in `models/model.ts`."""
    return {
        "configs/metadata.json": _json(_metadata(given, facts)),
        "configs/inference.json": _json(_inference()),
        "docs/README.md": _readme(facts).encode(),
        "LICENSE": f"{facts['licence']}\n".encode(),
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def _metadata(given: ImageInput, facts: Mapping[str, Any]) -> dict[str, Any]:
    outputs = {one["name"]: _format(one, given) for one in facts["outputs"]}
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"written by fedgraft {facts['fedgraft']}"},
        "monai_version": "1.3.0",
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {},
        "task": ", ".join(outputs),
        "description": f"{facts['id']}, trained by federated learning with fedgraft. {facts['notice']}",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": facts["trained_on"],
        "intended_use": facts["notice"],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": given.channels,
                    "spatial_shape": ["*", "*"],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(at): "image" for at in range(given.channels)},
                }
            },
            "outputs": outputs,
        },
    }


def _format(one: Mapping[str, Any], given: ImageInput) -> dict[str, Any]:
    names = one.get("classes") or one.get("each_label") or [one["name"]]
    pixels = "mask" in one
    return {
        "type": "image" if pixels else "probabilities" if one["is"] == "probabilities" else "value",
        "format": "segmentation" if pixels else "classes" if one["is"] == "probabilities" else "value",
        "num_channels": len(names),
        "spatial_shape": [given.size, given.size] if pixels else [],
        "dtype": "float32",
        "value_range": [0, 1] if one["is"] != "value" else [],
        "is_patch_data": False,
        "channel_def": {str(at): name for at, name in enumerate(names)},
    }


def _inference() -> dict[str, Any]:
    """PNG files of 8 bits in a folder, one by one; whoever has other files has another loader and scale."""
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.png'))]",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "reverse_indexing": False},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "answers": "$[@network_def(batch['image'].to(@device).as_tensor()) for batch in @dataloader]",
        "run": ["$print(@answers)"],
    }


def _readme(facts: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            f"# {facts['id']}",
            "",
            facts["notice"],
            "",
            f"Trained on {facts['trained_on']}. Licence of the weights: {facts['licence']}.",
            "",
            "`models/model.ts` takes images of any size, (N, 1 or 3, H, W) from 0 to 1 with square pixels; resizing, "
            "padding, normalisation and probabilities are inside. `model.json` has classes and operating points.",
            "",
        ]
    )
