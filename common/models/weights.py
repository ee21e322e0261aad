"""Pretrained weights: a folder with `model.safetensors` and its manifest. Never a pickle, never a download."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save as format_safetensors

from fedgraft.common.base.errors import InputError, WeightsError
from fedgraft.common.base.files import (
    CONFIGS,
    home,
    is_sealed,
    parse_tensors,
    sealed,
    unsealed,
    write_atomic,
    write_json,
)
from fedgraft.common.base.value import unless
from fedgraft.common.metrics.operating_point import OperatingPoint
from fedgraft.common.models.architecture import Architecture
from fedgraft.common.models.backbones.merging import merged
from fedgraft.common.models.backbones.positions import other_grid, resample
from fedgraft.common.models.cluster_models import choose, clusters_of, in_words
from fedgraft.common.models.packaged_weights import packaged, read_packaged
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.study.inputs import FeaturesInput, ImageInput, TableInput
from fedgraft.common.study.model_spec import Adapters
from fedgraft.common.study.plan import ADAPTERS, FRESH, Role
from fedgraft.common.study.tasks import AnyTask

_TENSORS, _MANIFEST = "model.safetensors", "model.json"
_SHIPPED = CONFIGS / "weights"
_MOST_LINES = 16
"""What a person reads of entries that do not fit."""
_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class WeightsManifest(BaseModel):
    """What the weights are: a digest of the file, the backbone, the input they expect, where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    id: Annotated[str, Field(pattern=_ID)]
    backbone: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    keys: int
    input: ImageInput | None
    """What the images looked like that the weights were trained on; none for tables."""
    classes: dict[str, tuple[str, ...]]
    """Tasks that ask for classes, and the classes, of the heads in the file; empty if there are none."""
    tasks: tuple[AnyTask, ...] = ()
    """Tasks of other kinds with heads in the file."""
    base_models: Annotated[tuple[str, ...], Field(exclude_if=unless(()))] = ()
    """The base models' backbones, of an ensemble."""
    table: Annotated[TableInput | FeaturesInput | None, Field(exclude_if=unless(None))] = None
    """The columns that they were trained on, of weights for tables or features."""
    operating_points: Annotated[dict[str, tuple[OperatingPoint, ...]], Field(exclude_if=unless({}))] = Field(default={})
    """By task, and there by label, from which score on a case is positive, where the study asked for it."""
    held_out: Annotated[str, Field(exclude_if=unless(""))] = ""
    """How patients were split: models that say the same held out the same patients of the same sites."""
    plugins: Annotated[tuple[Plugin, ...], Field(exclude_if=unless(()))] = ()
    """Whose code the backbones are, besides fedgraft's and torchvision's."""
    adapters: Annotated[Adapters | None, Field(exclude_if=unless(None))] = None
    """The low-rank adapters whose entries stand in the file beside the backbone's."""
    trained_on: str
    licence: str
    synthetic: bool
    how: str

    @property
    def is_brought(self) -> bool:
        """Whether it comes from elsewhere: from no study of fedgraft's."""
        return not self.trained_on.startswith("study ")


@dataclass(frozen=True)
class KeyReport:
    """What became of the entries: taken as they are, adapted to another number of channels, fresh, left out."""

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]


def find(ref: str) -> Path:
    """The folder of some weights: by its path, by that of the file in it, or by an id that ships or is in the home.

    Weights that an installed package brings are put into the home when they are first asked for.
    """
    if os.path.isdir(ref):  # noqa: PTH112 - unlike Path.is_dir it has no errors, whatever the name
        return Path(ref)
    if re.fullmatch(_ID, ref):
        for root in _roots():
            if (root / ref / _MANIFEST).is_file():
                return root / ref
        if (found := read_packaged(ref)) is not None:
            save_weights(home() / "weights" / ref, *found)
            return home() / "weights" / ref
    if os.path.isfile(ref):  # noqa: PTH113 - as above
        if os.path.basename(ref) in (_TENSORS, _MANIFEST):  # noqa: PTH119
            return Path(ref).parent
        raise WeightsError(
            f"{ref}: is no {_TENSORS} with a manifest beside it.", fix="Make one of it with `fedgraft weights import`."
        )
    known = ", ".join(dict.fromkeys([*(manifest.id for manifest in list_weights()), *packaged()])) or "none"
    raise WeightsError(f"No weights are called {ref!r}.", fix=f"Known ids: {known}. A folder's path works as well.")


def demand_id(name: str) -> None:
    """WeightsError unless weights may be called so: before they are made, and before anything is done by that name."""
    if not re.fullmatch(_ID, name):
        fix = "Up to 64 letters, digits, dots, dashes and underscores, the first a letter or a digit."
        raise WeightsError(f"--id {name}: cannot be the id of weights.", fix=fix)


def list_weights() -> list[WeightsManifest]:
    """All weights that can be named by id; those with a broken manifest are left out."""
    found = {}
    for root in reversed(_roots()):
        for path in sorted(root.glob(f"*/{_MANIFEST}")):
            try:
                found[path.parent.name] = load_manifest(str(path.parent))
            except WeightsError:
                continue
    return list(found.values())


def load_manifest(ref: str) -> WeightsManifest:
    """The manifest of some weights. WeightsError if there is none, or it is not one."""
    path = find(ref) / _MANIFEST
    try:
        content = json.loads(path.read_bytes())
        # What was imported by hand has no seal; what a run wrote of its operating points must be that to the letter.
        return WeightsManifest.model_validate(unsealed(content, str(path)) if is_sealed(content) else content)
    except FileNotFoundError:
        if clusters := clusters_of(path.parent):
            words = f"{path.parent}: has a model for each cluster of sites: {in_words(clusters)}."
            raise WeightsError(words, fix=choose(path.parent)) from None
        raise WeightsError(f"{path}: there is no such manifest.") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}.") from None
    except InputError as error:
        raise WeightsError(str(error), fix="Take the folder anew from where it was made.") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: is no manifest of weights: {error}") from None


def load_weights(ref: str) -> tuple[WeightsManifest, dict[str, np.ndarray]]:
    """Manifest and entries. The file is read once, and the very bytes that are parsed have the manifest's digest."""
    manifest, path = load_manifest(ref), find(ref) / _TENSORS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}.") from None
    if hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise WeightsError(f"{path}: is not the file that its manifest describes.", fix="Import the weights again.")
    return manifest, _parse(data, str(path))


def load_for(ref: str, adapters: Adapters | None) -> tuple[WeightsManifest, dict[str, np.ndarray]]:
    """Manifest and entries for a model with these `adapters`: others are merged into the entries that they add to."""
    manifest, arrays = load_weights(ref)
    if manifest.adapters is None or manifest.adapters == adapters:
        return manifest, arrays
    return manifest.model_copy(update={"adapters": None}), merged(arrays, manifest.adapters.scale)


def verify(ref: str) -> WeightsManifest:
    """The manifest, if file, digest and number of entries are as it says."""
    manifest, arrays = load_weights(ref)
    if len(arrays) != manifest.keys:
        raise WeightsError(f"{ref}: has {len(arrays)} entries, but its manifest says {manifest.keys}.")
    return manifest


def save_weights(folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> WeightsManifest:
    """Write a weights folder: the tensors first, then the manifest with their digest. `facts` are its other fields."""
    data = format_safetensors({key: np.asarray(array, order="C") for key, array in arrays.items()})
    try:
        manifest = WeightsManifest(sha256=hashlib.sha256(data).hexdigest(), keys=len(arrays), **facts)
    except ValidationError as error:
        raise WeightsError(f"{folder}: {error}") from None
    write_atomic(folder / _TENSORS, data)
    write_json(folder / _MANIFEST, sealed(manifest.model_dump(mode="json")))
    return manifest


def fit(
    made_of: Architecture, arrays: Mapping[str, np.ndarray], source: str, heads: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], KeyReport]:
    """The entries that a model takes from pretrained ones: its backbone's, and the `heads` of these tasks.

    A stem for 3 channels is adapted to 1, or 1 to 3, and position embeddings to the number of patches. All other heads
    stay fresh, and so do low-rank adapters of which nothing is given. WeightsError says which entries are missing,
    extra or misshapen: each, or where they are many, those that differ in numbers alone as one.
    """
    adapters = {key for key, entry in made_of.entries.items() if entry.tag.role in ADAPTERS}
    wanted = {
        key
        for key, entry in made_of.entries.items()
        if entry.tag.role not in FRESH or entry.tag.task in heads or (key in adapters and adapters & arrays.keys())
    }
    given = {key for key in arrays if key.startswith("backbone.") or key in wanted}
    faults = [f"{key}: missing" for key in sorted(wanted - given)]
    faults += [f"{key}: not in this backbone" for key in sorted(given - wanted)]
    taken: dict[str, np.ndarray] = {}
    adapted = []
    for key in sorted(wanted & given):
        array, entry = arrays[key], made_of.entries[key]
        if entry.tag.role is Role.STEM and _other_channels(array.shape, entry.shape):
            array = adapt_stem(array, entry.shape[1])
            adapted.append(key)
        if other_grid(key, array.shape, entry.shape):
            array = resample(array, entry.shape[1])
            adapted.append(key)
        if array.shape != entry.shape:
            faults.append(f"{key}: is {arrays[key].shape}, must be {entry.shape}")
        elif array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            faults.append(f"{key}: must hold finite real numbers")
        else:
            taken[key] = array.astype(entry.dtype)
    if faults:
        raise WeightsError(
            f"{source}: does not fit the backbone:\n" + "\n".join(f"  - {line}" for line in _short(faults))
        )
    loaded = tuple(sorted((wanted & given) - set(adapted)))
    fresh = tuple(key for key in made_of.entries if key not in wanted)
    return taken, KeyReport(loaded, tuple(adapted), fresh, tuple(sorted(set(arrays) - given)))


def _short(faults: Sequence[str]) -> list[str]:
    """A few lines: where there are many, those that differ in numbers alone are one, with how many they are."""
    if len(faults) <= _MOST_LINES:
        return list(faults)
    alike: dict[str, list[str]] = {}
    for fault in faults:
        alike.setdefault(re.sub(r"\.\d+(?=\.)", ".*", fault), []).append(fault)
    # Of what is missing and of what is too many some lines each, so that it is seen how names differ.
    kinds: dict[str, list[str]] = {}
    for line, own in alike.items():
        told = f"{line} ({len(own)} entries)" if len(own) > 1 else own[0]
        kinds.setdefault(line.partition(": ")[2][:7], []).append(told)
    most = max(1, _MOST_LINES // len(kinds))
    lines = [line for own in kinds.values() for line in own[:most]]
    return lines + [f"and {len(alike) - len(lines)} more lines like these"] * (len(alike) > len(lines))


def _other_channels(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether both are shapes of a first convolution's kernels, one for grey images and one for colour."""
    return len(given) == len(wanted) == 4 and {given[1], wanted[1]} == {1, 3}


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution (out, in, h, w) for another number of channels, with the same answer to a grey image."""
    if kernel.ndim != 4 or kernel.shape[1] == channels:
        return kernel
    summed = kernel.sum(axis=1, keepdims=True)
    return np.repeat(summed / channels, channels, axis=1).astype(kernel.dtype)


def _parse(data: bytes, source: str) -> dict[str, np.ndarray]:
    try:
        return parse_tensors(data, source)
    except InputError as error:
        raise WeightsError(str(error)) from None


def _roots() -> list[Path]:
    return [_SHIPPED, home() / "weights"]
