"""Where in an image a model looks: LayerCAM and occlusion, as maps of the image's own size.

A map says what moved the answer, not why, and not whether the answer is right.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from fedgraft.common.base.errors import InputError
from fedgraft.common.models.ensemble import Ensemble
from fedgraft.common.models.model import TransferModel

_CELLS = 16
"""Cells a side that a map needs, if any layer has as many: a finding of a twelfth of the image still has its own."""
_SCALE = 4
"""Pixels a side that an overlay has for one that the model sees."""
_PATCHES = 8
"""Patches a side that occlusion covers, each half over the next."""

Heat = Callable[[TransferModel, Tensor, str, Tensor], Tensor]
"""From a model in eval, images (N, C, H, W), a task and a class for each image (N,) to maps (N, H, W) in [0, 1]."""


def layer_cam(model: TransferModel, images: Tensor, task: str, classes: Tensor) -> Tensor:
    """What speaks for a class, by the gradients of its log-odds at the last layer with maps of 16 cells a side or more.

    Jiang et al. 2021, "LayerCAM: exploring hierarchical class activation maps": each position is weighted by its own
    gradient, so that, unlike with Grad-CAM's mean over positions, early and sharp maps can be used. Cells are put where
    padded convolutions of that stride look, and smoothed by half a cell. InputError if no layer has maps.
    """
    if isinstance(model.backbone, Ensemble):
        raise InputError("An ensemble has maps for each of its base models, not one.", fix="Ask for --heat occlusion.")
    maps, outputs = _last_maps(model, images)
    (gradient,) = torch.autograd.grad(_log_odds(outputs, task, classes).sum(), maps)
    cells = (gradient.clamp(min=0) * maps).sum(1).clamp(min=0).detach()
    step = images.shape[-1] / cells.shape[-1]
    whole = _spread(cells, (images.shape[-2], images.shape[-1]), step)
    return _to_one(_smooth(whole, step / 2))


def occlusion(model: TransferModel, images: Tensor, task: str, classes: Tensor) -> Tensor:
    """How much the log-odds of a class fall when a patch is replaced by its surroundings' mean (Zeiler & Fergus 2014).

    Works for every backbone, at the cost of 225 passes.
    """
    size = images.shape[-1]
    patch, step = size // _PATCHES, max(1, size // (2 * _PATCHES))
    blurred = F.avg_pool2d(images, 2 * patch - 1, 1, patch - 1, count_include_pad=False)
    heat, seen = torch.zeros(len(images), size, size, device=images.device), torch.zeros(size, size)
    with torch.inference_mode():
        whole = _log_odds(model(images), task, classes)
        for top in range(0, size - patch + 1, step):
            for left in range(0, size - patch + 1, step):
                there = (slice(None), slice(None), slice(top, top + patch), slice(left, left + patch))
                covered = images.clone()
                covered[there] = blurred[there]
                fall = whole - _log_odds(model(covered), task, classes)
                heat[there[0], there[2], there[3]] += fall[:, None, None]
                seen[there[2], there[3]] += 1
    return _to_one((heat / seen.clamp(min=1).to(heat)).clamp(min=0))


HEATS: dict[str, Heat] = {"cam": layer_cam, "occlusion": occlusion}


def laid_over(stored: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image (channels, H, W) as stored with the map (H, W) laid over it: the hotter, the less to see.

    RGB (H * 4, W * 4, 3) uint8.
    """
    grey = (stored.astype(np.float64).mean(axis=0) + 32768) / 65535
    height, width = grey.shape
    size = (width * _SCALE, height * _SCALE)
    below, hot = (
        np.asarray(Image.fromarray(layer.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
        for layer in (grey, heat)
    )
    colour = colormaps["inferno"](hot)[..., :3]
    mixed = below[..., None] * (1 - 0.6 * hot[..., None]) + colour * 0.6 * hot[..., None]
    return np.asarray((255 * mixed).round().astype(np.uint8))


def _last_maps(model: TransferModel, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The last maps (N, channels, h, w) that are fine enough, and what the model said."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            seen.append(output)

    hooks = [part.register_forward_hook(keep) for part in model.backbone.modules()]
    try:
        with torch.enable_grad():
            outputs = model(images.detach().requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise InputError("This backbone has no maps over the image.", fix="Ask for --heat occlusion.")
    finest = max(maps.shape[-1] for maps in seen)
    return [maps for maps in seen if maps.shape[-1] >= min(_CELLS, finest)][-1], outputs


def _log_odds(outputs: dict[str, Tensor], task: str, classes: Tensor) -> Tensor:
    logits = outputs[task].float()
    chosen = F.one_hot(classes.to(logits.device), logits.shape[1]).bool()
    return logits[chosen] - logits.masked_fill(chosen, -torch.inf).logsumexp(1)


def _spread(cells: Tensor, size: tuple[int, int], step: float) -> Tensor:
    """Cells (N, h, w) over an image: cell i lies at pixel i * step, where a padded convolution of that stride looks."""
    axes = [
        2 * torch.arange(pixels, device=cells.device) / step / max(count - 1, 1) - 1
        for pixels, count in zip(size, cells.shape[1:], strict=True)
    ]
    down, across = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([across, down], -1).expand(len(cells), *size, 2)
    spread = F.grid_sample(cells[:, None].float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return spread[:, 0]


def _smooth(maps: Tensor, deviation: float) -> Tensor:
    return torch.from_numpy(gaussian_filter(maps.cpu().numpy(), (0, deviation, deviation)))


def _to_one(maps: Tensor) -> Tensor:
    """Each map's largest value becomes 1; a map of nothing stays 0."""
    return maps.cpu() / maps.cpu().amax((1, 2), keepdim=True).clamp(min=1e-12)
