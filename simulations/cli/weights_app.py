"""`fedgraft weights`: pretrained weights on this machine, from files and from runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedgraft.common.base.console.command_line import command_group
from fedgraft.common.plugins.option import Plugins
from fedgraft.simulations.cli.app import AsJson, Sets, StudyFile

weights = command_group("Pretrained weights: train, import, look at, verify.")

Prepared = Literal["imagenet", "zscore", "lite", "unknown"]


@weights.command("list")
def weights_list(as_json: AsJson = False) -> None:
    """All weights that studies can name."""
    from fedgraft.simulations.cli import weights_commands

    weights_commands.list_weights(as_json=as_json)


@weights.command("show")
def weights_show(ref: Annotated[str, typer.Argument(help="An id, or a folder of weights.")]) -> None:
    """The manifest of some weights."""
    from fedgraft.common.models.weights import load_manifest

    typer.echo(load_manifest(ref).model_dump_json(indent=1))


@weights.command("verify")
def weights_verify(refs: Annotated[list[str], typer.Argument(help="Ids or folders.")]) -> None:
    """Check that weights are what their manifest says."""
    from fedgraft.common.models.weights import verify

    for ref in refs:
        manifest = verify(ref)
        typer.echo(f"{manifest.id}: as its manifest says ({manifest.keys} entries, sha256 {manifest.sha256})")


@weights.command("import")
def weights_import(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    source: Annotated[str, typer.Argument(help="A .safetensors or state-dict .pth file, or Enum.NAME of torchvision.")],
    backbone: Annotated[str, typer.Option(help="The backbone that the weights are for.")],
    id_: Annotated[str, typer.Option("--id", help="The name that studies will use.")],
    licence: Annotated[str, typer.Option(help="Under what licence the weights may be used.")],
    file: Annotated[Path | None, typer.Option(help="With Enum.NAME: the weights file, already here.")] = None,
    trained_on: Annotated[str, typer.Option(help="What they were trained on.")] = "not stated",
    normalise: Annotated[Prepared, typer.Option(help="How images were prepared for them.")] = "unknown",
    mean: Annotated[list[float] | None, typer.Option(help="In numbers: one, or three for red, green, blue.")] = None,
    std: Annotated[list[float] | None, typer.Option(help="Likewise, of pixels from 0 to 1.")] = None,
    _plugin: Plugins = None,
) -> None:
    """Take in weights from a local file; nothing is ever downloaded."""
    from fedgraft.common.base.errors import InputError
    from fedgraft.simulations.cli import weights_commands
    from fedgraft.simulations.weights.weights_import import WeightsSource

    by_name = not Path(source).exists() and "." in source and file is not None
    if not by_name and file is not None:
        raise InputError("--file goes with the name of torchvision's weights, such as ResNet18_Weights.IMAGENET1K_V1.")
    path, enum = (file, source) if by_name else (Path(source), None)
    assert path is not None
    constants = tuple(mean or ()), tuple(std or ())
    weights_commands.import_weights(
        WeightsSource(path, backbone, licence, trained_on, normalise, enum, *constants), id_
    )


@weights.command("soup")
def weights_soup(
    refs: Annotated[list[str], typer.Argument(help="Finished runs' folders, or ids, all of one backbone.")],
    id_: Annotated[str, typer.Option("--id", help="The name that studies will use.")],
) -> None:
    """Average finished models of the same backbone that began from the same weights."""
    from fedgraft.simulations.cli import weights_commands

    weights_commands.make_soup(refs, id_)


@weights.command("pretrain")
def weights_pretrain(
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(help="The new folder for the weights.")],
    id_: Annotated[str, typer.Option("--id", help="The name that studies will use.")],
    licence: Annotated[str, typer.Option(help="Under what licence the weights may be used.")] = "Apache-2.0",
    set_: Sets = None,
    _plugin: Plugins = None,
) -> None:
    """Train a source model on one site's data and keep it with a manifest."""
    from fedgraft.simulations.cli import weights_commands

    weights_commands.pretrain(study_file, out, id_, licence, tuple(set_ or ()))
