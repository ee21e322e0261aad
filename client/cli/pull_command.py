"""`fedgraft site pull`: images from an archive (PACS), before there is a site at all."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedgraft.client.data.pacs.pull import Outcome

_AT_MOST = 20


def pull(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    source: Annotated[str, typer.Option("--from", metavar="URL", help="The PACS's DICOMweb service.")],
    out: Annotated[Path, typer.Option(help="The folder for the images; the same one again goes on where it was.")],
    worklist: Annotated[
        Path | None, typer.Option(help="A CSV file of StudyInstanceUID, AccessionNumber or PatientID.")
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Modality=DX, StudyDate=20200101-20201231 and so on.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.01, help="At most so many requests per second.")] = 10.0,
    mb_per_s: Annotated[float | None, typer.Option(min=0.01, help="At most so many megabytes per second.")] = None,
    object_mb: Annotated[int, typer.Option(min=1, help="No object is larger than so many megabytes.")] = 4096,
    token_file: Annotated[Path | None, typer.Option(help="A file with a bearer token; read anew each time.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="This machine's certificate for the PACS (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM), if it is in another file.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The authority of the PACS's certificate (PEM).")] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Allow http without TLS to another machine.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Search alone, and say what would be pulled.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable output on stdout.")] = False,
) -> int:
    """Pull studies from a PACS by DICOMweb: slowly, each object once, and on from where it was."""
    from fedgraft.client.data.pacs.address import PacsAddress
    from fedgraft.client.data.pacs.dicomweb import Dicomweb
    from fedgraft.client.data.pacs.pace import Pace
    from fedgraft.client.data.pacs.pull import Wanted
    from fedgraft.client.data.pacs.pull import pull as carry_out
    from fedgraft.client.data.pacs.store import Store
    from fedgraft.client.data.pacs.work_list import keys_of
    from fedgraft.common.base.errors import RunError

    address = PacsAddress(source, token_file, certificate, key, ca, plain_http)
    wanted, store = Wanted(worklist, keys_of(query or ())), Store(out, object_mb)
    with address.open() as client:
        pacs = Dicomweb(client, Pace(rate, mb_per_s))
        outcome = carry_out(pacs, store, wanted, _progress, dry=dry_run)
    if as_json:
        sys.stdout.write(
            json.dumps(asdict(outcome) | {"images": str(store.images.resolve()), "dry_run": dry_run}) + "\n"
        )
    else:
        _show(outcome, store.images, dry=dry_run)
    if outcome.stopped:
        raise RunError(outcome.stopped)
    return 0 if outcome.is_complete or (dry_run and not outcome.not_found) else 1


def _show(outcome: Outcome, images: Path, *, dry: bool) -> None:
    from rich.table import Table

    from fedgraft.common.base.console.terminal import OUT, say

    for where, why in [*outcome.not_found.items(), *outcome.failed.items()][:_AT_MOST]:
        say(f"{where}: the PACS {why}.")
    if (more := len(outcome.not_found) + len(outcome.failed) - _AT_MOST) > 0:
        say(f"... and {more} more; --json names all, and studies/UID.json in the folder says it of each.")
    table = Table("studies", "")
    for name, count in (
        ("asked for", outcome.asked),
        ("already there", outcome.already),
        ("pulled", outcome.pulled),
        ("without series of that modality", outcome.empty),
        ("failed", len(outcome.failed)),
        ("not found", len(outcome.not_found)),
        ("to pull" if dry else "waiting", outcome.waiting),
    ):
        table.add_row(name, str(count))
    OUT.print(table)
    if dry:
        say("Nothing was pulled (--dry-run).")
        return
    say(f"{outcome.objects} objects, {outcome.bytes / 1e6:.1f} MB. For `cohort.root` of site.yaml: {images.resolve()}")
    if outcome.failed:
        say("Repeat the command later for what failed: it goes on where it was.")


def _progress(text: str) -> None:
    from fedgraft.common.base.console.terminal import ERR

    if ERR.is_terminal:
        ERR.print(text, highlight=False, markup=False, soft_wrap=True)
