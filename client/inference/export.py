"""A finished model for other programs: ONNX, TorchScript, safetensors or a MONAI bundle, and how it is to be used.

Whatever is written answers as `predict` does: normalisation and probabilities are inside. What each file takes and
gives, and the operating points, stand in `model.json` beside it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import torch
from torch import Tensor

from fedgraft.client.inference.exported_module import AnsweringModule, WithGeometry
from fedgraft.client.inference.model import LoadedModel
from fedgraft.client.inference.monai_bundle import bundle_files
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.environment import fedgraft_version
from fedgraft.common.base.errors import ENDS, FedgraftError, InputError, RunError
from fedgraft.common.base.files import canonical_json, make_folder, private_folder, write_atomic
from fedgraft.common.models.weights import find, load_for, load_manifest, save_weights
from fedgraft.common.study.inputs import FeaturesInput, ImageInput, TableInput
from fedgraft.common.study.tasks import AnyTask, Multilabel, Regression, Segmentation, Task

Kind = Literal["onnx", "torchscript", "safetensors", "monai-bundle"]
_TOLERANCE, _EDGE = 1e-4, 1e-3
_EXTRA = "Install what it takes: pip install 'fedgraft[export]'."


def export(reader: LoadedModel, source: str, kind: Kind, out: Path) -> Path:
    """Write a model into the new folder `out`, which appears whole or not at all.

    Low-rank adapters are merged into it first. What is written is asked about made-up inputs, and must answer as the
    model does to 1e-4; RunError if not. InputError if `out` is in use, a package is missing, or the model cannot be
    written in that form.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", fix="Choose another --out.")
    demand_place(out)
    make_folder(out.parent)
    reader.merge()
    facts = _facts(reader, kind)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with private_folder(folder):
            _write(reader, source, kind, folder, facts)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return out


def _write(reader: LoadedModel, source: str, kind: Kind, folder: Path, facts: dict[str, Any]) -> None:
    match kind:
        case "onnx":
            with _in("ONNX"):
                _onnx(reader, folder / "model.onnx", facts)
        case "torchscript":
            with _in("TorchScript"):
                _torchscript(reader, folder / "model.pt")
        case "safetensors":
            _weights(source, folder)
            return
        case "monai-bundle":
            if not isinstance(reader.input, ImageInput):
                raise InputError("A MONAI bundle is for images, and this model is for tables.", fix="Use --to onnx.")
            make_folder(folder / "models")
            with _in("TorchScript, which a MONAI bundle holds"):
                _torchscript(reader, folder / "models/model.ts")
            for name, content in bundle_files(reader.input, facts).items():
                make_folder((folder / name).parent)
                write_atomic(folder / name, content, private=True)
        case _:
            assert_never(kind)
    write_atomic(folder / "model.json", json.dumps(facts, indent=1).encode() + b"\n", private=True)


def _weights(source: str, folder: Path) -> None:
    """The files as they are, or anew with low-rank adapters merged, when their digest is another."""
    if load_manifest(source).adapters is None:
        for name in ("model.safetensors", "model.json"):
            shutil.copyfile(find(source) / name, folder / name)
        return
    manifest, arrays = load_for(source, None)
    save_weights(folder, arrays, manifest.model_dump(exclude={"sha256", "keys", "format"}))


def _facts(reader: LoadedModel, kind: Kind) -> dict[str, Any]:
    """What whoever uses the file must know; all of it but the input's form is the same for every kind."""
    manifest = reader.manifest
    return {
        "format": 1,
        "fedgraft": fedgraft_version(),
        "id": manifest.id,
        "weights_sha256": manifest.sha256,
        "kind": kind,
        "input": _input(reader.input, geometry=kind in {"torchscript", "monai-bundle"}),
        "outputs": [_output(task) for task in (*reader.tasks, *reader.others)],
        "operating_points": {
            task: [point.model_dump(mode="json") | {"probability": point.probability} for point in points]
            for task, points in manifest.operating_points.items()
        },
        "trained_on": manifest.trained_on,
        "licence": manifest.licence,
        "synthetic": manifest.synthetic,
        "notice": "Not a medical device: the model was not validated for any use.",
    }


def _input(given: ImageInput | TableInput, *, geometry: bool) -> dict[str, Any]:
    if isinstance(given, TableInput):
        return {
            "name": "rows",
            "shape": ["cases", given.width],
            "dtype": "float32",
            "missing": "NaN",
            **_columns(given),
        }
    size = ["height", "width"] if geometry else [given.size, given.size]
    steps = [
        "make pixels square",
        f"resize so that the longer side has {given.size} pixels (bilinear, with anti-aliasing)",
        f"pad with 0 on both sides to {given.size} x {given.size}",
    ]
    return {
        "name": "image",
        "shape": ["cases", "1 or 3" if geometry else given.channels, *size],
        "dtype": "float32",
        "range": [0, 1],
        "before": steps[:1] if geometry else steps,
        "inside": ([*steps[1:], "grey by luminance, or grey repeated"] if geometry else []) + [_normalised(given)],
    }


def _columns(given: TableInput) -> dict[str, Any]:
    if isinstance(given, FeaturesInput):
        return {"features": given.model_dump(mode="json", include={"count", "extractor"})}
    return {"columns": given.model_dump(mode="json", include={"numeric", "categorical"})}


def _normalised(given: ImageInput) -> str:
    if given.normalise == "zscore":
        return "each image to mean 0 and deviation 1"
    return f"minus {list(given.mean)}, divided by {list(given.std)}"


def _output(task: AnyTask) -> dict[str, Any]:
    match task:
        case Task():
            return {"name": task.name, "is": "probabilities", "adds_up_to": 1, "classes": list(task.classes)}
        case Multilabel():
            return {"name": task.name, "is": "probabilities", "each_label": list(task.labels)}
        case Regression():
            return {"name": task.name, "is": "value", "unit": task.unit}
        case Segmentation():
            return {"name": task.name, "is": "probability of each pixel", "mask": "above 0.5"}
        case _:
            assert_never(task)


@contextmanager
def _in(form: str) -> Iterator[None]:
    """What torch says of a module that it cannot write is said in a line."""
    try:
        yield
    except (FedgraftError, MemoryError, torch.OutOfMemoryError, OSError, *ENDS):
        raise
    except BaseException as error:  # exporters raise anything, about the code of others too
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"This model cannot be written as {form} ({type(error).__name__}: {said}).",
            fix="Use another form, such as --to safetensors, or change the backbone's code.",
        ) from error


def _onnx(reader: LoadedModel, path: Path, facts: Mapping[str, Any]) -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter works with it
    except ImportError as error:
        raise InputError(f"{error.name} is not installed, and ONNX takes it.", fix=_EXTRA) from None
    module, example = AnsweringModule(reader).eval(), _example(reader.input, 3)[1]
    names = [task.name for task in (*reader.tasks, *reader.others)]
    cases = torch.export.Dim("cases", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes=({0: cases},), verbose=False,
            input_names=[facts["input"]["name"]], output_names=names,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    model.metadata_props.append(onnx.StringStringEntryProto(key="fedgraft", value=canonical_json(facts).decode()))
    onnx.save(model, str(path))
    path.chmod(0o600)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def ask(x: Tensor) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {facts["input"]["name"]: x.numpy()}), strict=True))

    _demand_the_same(ask, reader, path.name)


def _torchscript(reader: LoadedModel, path: Path) -> None:
    module, example = AnsweringModule(reader).eval(), _example(reader.input, 3)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have another form than this one, which others still read
        traced = torch.jit.trace(module, example, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        size = reader.input if isinstance(reader.input, ImageInput) else None
        whole = torch.jit.script(WithGeometry(traced, size).eval())
        try:
            again = _written(whole, path)
        except (RuntimeError, UnicodeError):
            # The file is program text, which cannot hold every name of a part that Python can: Greek, quotes, "class".
            # Without parts there are no names; weights are constants then.
            again = _written(torch.jit.freeze(whole, optimize_numerics=False), path)
    path.chmod(0o600)
    _demand_the_same(lambda x: {name: found.numpy() for name, found in again(x).items()}, reader, path.name)


def _written(whole: torch.jit.ScriptModule, path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """The module as it is read back from its file."""
    torch.jit.save(whole, str(path))
    again: Callable[[Tensor], dict[str, Tensor]] = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return again


def _demand_the_same(ask: Callable[[Tensor], Mapping[str, np.ndarray]], reader: LoadedModel, name: str) -> None:
    """The file says what the model says, of other numbers of cases than it was made with."""
    for count in (1, 5):
        stored, x = _example(reader.input, count)
        wanted = reader.answers(reader.over(stored))
        with torch.inference_mode():
            found = ask(x)
        for task in (*reader.tasks, *reader.others):
            off = _off(task, found[task.name], wanted[task.name])
            if not off <= _TOLERANCE:
                raise RunError(f"{name} does not answer as the model does: {task.name} is off by {off:.1g}.")


def _off(task: AnyTask, found: np.ndarray, wanted: np.ndarray) -> float:
    """How far answers are apart: values in deviations, probabilities as such; of masks the share of other pixels."""
    match task:
        case Segmentation():
            # Where a mask's edge is hit exactly, another rounding may decide otherwise.
            return max(0.0, float(((found > 0.5) != (wanted > 0)).mean()) - _EDGE)
        case Regression():
            return float(np.abs(found - wanted).max()) / task.std
        case _:
            return float(np.abs(found - wanted).max())


def _example(given: ImageInput | TableInput, count: int) -> tuple[Tensor, Tensor]:
    """Made-up cases as a cohort stores them, and as the file takes them."""
    draw = torch.Generator().manual_seed(count)
    if isinstance(given, TableInput):
        rows = torch.randn(count, given.width, generator=draw)
        rows[0, 0] = torch.nan
        return rows, rows
    shape = (count, given.channels, given.size, given.size)
    stored = torch.randint(-32768, 32768, shape, generator=draw, dtype=torch.int16)
    return stored, (stored.float() + 32768) / 65535
