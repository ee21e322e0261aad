"""Backbones of the package timm, by `timm/` and its own names: vision transformers, DINOv2 and hundreds more.

Entries are random until weights are taken in from a local file; nothing is ever downloaded, and names by which timm
would look elsewhere than in its own code are refused.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

import torch
from torch import nn

from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.config.suggest import instead
from fedgraft.common.models.backbones.backbone import Backbone

PREFIX = "timm/"
_OWN_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")


def is_timms(name: str) -> bool:
    """Whether a backbone is asked for by timm's name."""
    return name.startswith(PREFIX)


def timm_backbone(name: str, channels: int, size: int) -> Backbone:
    """timm's network without its classifier, with random entries from torch's global stream.

    InputError if timm is not installed or has no such network, or for a size of images that it does not take.
    """
    timm = _imported()
    own = name.removeprefix(PREFIX)
    if not _OWN_NAME.fullmatch(own) or not timm.is_model(own):
        near = difflib.get_close_matches(own, timm.list_models(), n=4)
        raise InputError(f"timm has no network {own!r}{instead(own, near)}.")
    facts = timm.get_pretrained_cfg(own)
    of_one_size = {"img_size": size} if facts is not None and facts.fixed_input_size else {}
    try:
        module: nn.Module = timm.create_model(own, pretrained=False, num_classes=0, in_chans=channels, **of_one_size)
        with torch.no_grad():
            features = module.eval()(torch.zeros(1, channels, size, size))
    except ENDS:
        raise
    except BaseException as error:  # each network has limits of its own
        raise InputError(f"{name} cannot be built for images of {size} pixels: {error}") from error
    _demand_whole_patches(name, module, size)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise InputError(f"{name} gives no features (N, width), so it cannot be a backbone.")
    head = facts.classifier if facts is not None and isinstance(facts.classifier, str) else ""
    return Backbone(module.train(), features.shape[1], head)


def _demand_whole_patches(name: str, module: nn.Module, size: int) -> None:
    """InputError where patches would leave out the image's last rows and columns without a word."""
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(size % side for side in patch):
        raise InputError(f"{name} needs an image size that is a multiple of {patch[0]}, not {size}.")


def _imported() -> Any:
    """timm, told to stay offline. InputError if it is not installed."""
    for switch in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ[switch] = "1"
    try:
        import timm
    except ImportError:
        fix = "Install it: pip install 'fedgraft[timm]'."
        raise InputError("timm, of which the backbone is, is not installed.", fix=fix) from None
    return timm
