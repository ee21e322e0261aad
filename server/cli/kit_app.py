"""`fedgraft kit`: fedgraft with all that it needs, for hospitals whose machines reach no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedgraft.common.base.console.command_line import command_group, examples

app = command_group("Install kits: fedgraft with all that it needs, signed, for machines without a network.")


@app.command(
    epilog=examples(
        "fedgraft kit build --out fedgraft-kit",
        "fedgraft kit build --torch absent --out fedgraft-kit",
    ),
)
def build(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    out: Annotated[Path, typer.Option(help="A new folder for the kit.")],
    python: Annotated[str, typer.Option(help="The Python of the machines that it is for.")] = "3.11",
    platform: Annotated[str, typer.Option(help="The newest wheels that run there.")] = "manylinux_2_31_x86_64",
    torch: Annotated[
        str, typer.Option(help="locked; cpu, cu128 or another build of it; absent where machines bring their own.")
    ] = "locked",
    torch_index: Annotated[str | None, typer.Option(help="The index that has that build; pip's own.")] = None,
    key: Annotated[Path, typer.Option(help="The P-384 key that signs.")] = Path("kits/authority/ca.key"),
    source: Annotated[Path, typer.Option(help="The checkout of fedgraft.")] = Path(),
) -> None:
    """Fetch what is locked, build fedgraft's own wheel, and sign both as one folder to be carried."""
    from fedgraft.server.install_kit.build import KitRequest, build_kit
    from fedgraft.server.install_kit.wheels import TargetMachine

    told = build_kit(KitRequest(source, out, TargetMachine(python, platform), key, torch, torch_index))
    size = sum(path.stat().st_size for path in (out / "wheels").iterdir()) / 1e6
    typer.echo(
        f"{out}: {len(list((out / 'wheels').iterdir()))} wheels, {size:.0f} MB. Install: python{python} install.py"
    )
    typer.echo(f"Signed by {told}: tell the hospital so, another way than the kit goes.")


@app.command()
def verify(
    kit: Annotated[Path, typer.Argument(help="The folder of an install kit.")],
    fingerprint: Annotated[str | None, typer.Option(help="The signer's, as its people told you.")] = None,
) -> int:
    """Check that an install kit is as it was signed, and by whom; name every file that is not."""
    from fedgraft.server.install_kit.build import faults, signer_of

    if found := faults(kit, fingerprint):
        for fault in found:
            typer.echo(f"{kit}: {fault}.", err=True)
        return 1
    typer.echo(f"{kit}: every file is as {signer_of(kit)} signed it.")
    if fingerprint is None:
        typer.echo("Whose key that is, people say: compare it, or give it with --fingerprint.")
    return 0
