"""`fedgraft site`: its subcommands. What one needs is imported only when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedgraft.client.cli.pull_command import pull
from fedgraft.common.base.console.command_line import command_group

if TYPE_CHECKING:
    pass

app = command_group("A hospital's site: join, check, approve, start.")
app.command("pull")(pull)


def _home() -> Path:
    # As fedgraft.common.base.files has it, without what that imports.
    return Path(os.environ.get("FEDGRAFT_HOME") or Path.home() / ".fedgraft") / "site"


SiteFolder = Annotated[
    Path, typer.Argument(help="The site's folder; in a simulation sites/NAME of the run.", default_factory=_home)
]
PendingStudy = Annotated[str, typer.Argument(help="The study's file, or the digest of one that was offered.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable output on stdout.")]
KINDS = "What the data are: dicom, images, nifti, npz, features or table."
By = Annotated[str | None, typer.Option(help="Your name; a person of the site signs with it (fedgraft person).")]
PassphraseFile = Annotated[Path | None, typer.Option(help="Read the passphrase of your key here instead of asking.")]
CodeFile = Annotated[Path | None, typer.Option(help="Read the kit's code here instead of asking.")]
Home = Annotated[Path, typer.Option(envvar="FEDGRAFT_SITE", help="The site's folder.", default_factory=_home)]


@app.command()
def join(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    home: Home,
    kit: Annotated[Path, typer.Argument(help="The kit: a zip file, or the folder it was unpacked to.")],
    data: Annotated[Path, typer.Option(help="The folder with the images, or for --kind table the CSV file.")],
    labels: Annotated[Path | None, typer.Option(help="The CSV file with the labels.")] = None,
    kind: Annotated[str, typer.Option(help=KINDS)] = "dicom",
    key_column: Annotated[str | None, typer.Option(help="The column by which labels are joined to the data.")] = None,
    patient_column: Annotated[
        str | None, typer.Option(help="For images and tables: the column that says whose a case is.")
    ] = None,
    code_file: CodeFile = None,
    policy: Annotated[Path | None, typer.Option(help="A YAML file with what the site allows.")] = None,
) -> None:
    """Make the site's folder from a kit, and its keys; write what the coordinator needs to enrol it."""
    from fedgraft.client.cli import deployed_commands as deployed

    # Links in a circle are an error for pathlib; that they are no folder is said where all cohorts are looked at.
    files = {"root": Path(os.path.realpath(data)), "labels": labels and Path(os.path.realpath(labels))}
    cohort = {"kind": kind, **files, "key_column": key_column, "patient_column": patient_column}
    deployed.join(kit, home, _code(code_file), cohort, policy)


@app.command()
def rejoin(
    home: Home,
    kit: Annotated[Path, typer.Argument(help="The renewed kit.")],
    code_file: CodeFile = None,
    keep_keys: Annotated[bool, typer.Option("--keep-keys", help="Only the server is another.")] = False,
) -> None:
    """Take over a renewed kit with new keys; data, state, approvals and pinned members stay as they are."""
    from fedgraft.client.cli import deployed_commands as deployed

    deployed.rejoin(kit, home, _code(code_file), keep_keys=keep_keys)


@app.command()
def roster(
    home: Home,
    file: Annotated[Path | None, typer.Argument(help="The roster.json that the coordinator sent.")] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="NAME=FINGERPRINT: pin a site, by what its people told you by telephone.")
    ] = None,
) -> None:
    """This site's fingerprint, and with whom it masks: only with members that somebody here has pinned."""
    from fedgraft.client.cli import deployed_commands as deployed

    deployed.roster(file, home, accept or ())


@app.command()
def start(
    home: Home,
    json_logs: Annotated[bool, typer.Option(help="Logs as JSON, a line per event.")] = False,
) -> None:
    """Take part, until stopped by Ctrl-C or SIGTERM; the instruction at hand is finished first."""
    from fedgraft.client.cli import deployed_commands as deployed

    deployed.start(home, as_json=json_logs)


@app.command("metrics")
def metrics(
    home: Home, port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 9464
) -> None:
    """Figures for Prometheus: budget, messages, refusals. For this machine alone, until Ctrl-C."""
    from fedgraft.client.cli import deployed_commands as deployed

    deployed.show_metrics(home, port)


@app.command("budget")
def budget(
    folder: SiteFolder,
    study_file: Annotated[Path | None, typer.Option("--study", help="What would this study cost?")] = None,
    patients: Annotated[int | None, typer.Option(min=1, help="Patients in training, if nothing was spent yet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the account into this PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Privacy spent and left, study by study, and what a proposed study would cost."""
    from fedgraft.client.cli.commands import show_budget

    show_budget(folder, study_file, patients, plot, as_json=as_json)


@app.command("egress")
def egress(
    folder: SiteFolder,
    show: Annotated[int | None, typer.Option(min=1, help="Show this message in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """All that has left the site, checked line by line."""
    from fedgraft.client.cli.commands import show_egress

    show_egress(folder, show, as_json=as_json)


@app.command("settle")
def settle(
    home: Home,
    by: Annotated[str | None, typer.Option(help="Your name: put on record what is shown, as decided by you.")] = None,
) -> int:
    """After records of the site were lost or restored: what is assumed spent. Changes nothing without a name."""
    from fedgraft.client.cli import records_commands

    return records_commands.settle_records(home, by)


@app.command("check")
def check(
    home: Home,
    study_ref: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="The study to check against.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="environment, data, training, connection or policy alone.")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train on this site's data alone.")] = False,
    share: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a report for others: no exact count is in it.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check whether this site can take part. The report names nobody, but its counts are exact: it is for this site."""
    from fedgraft.client.cli import governance_commands as decisions

    return decisions.check_site(home, study_ref, part or (), baseline=baseline, share=share, as_json=as_json)


@app.command("plugins")
def plugins(home: Home, as_json: AsJson = False) -> None:
    """Code of others that is installed here for studies, and what the policy must list to allow it. None of it runs."""
    from fedgraft.client.cli import governance_commands as decisions

    decisions.show_plugins(home, as_json=as_json)


@app.command("audit")
def audit(
    home: Home,
    run: Annotated[Path, typer.Argument(help="The folder of a finished run that this site trained in.")],
    as_json: AsJson = False,
) -> int:
    """Attack a run's model with this site's own patients, and write a signed sheet of what is found. Nothing leaves."""
    from fedgraft.client.cli.evidence_commands import audit_run

    return audit_run(home, run, as_json=as_json)


@app.command("passport")
def passport(
    home: Home,
    run: Annotated[Path, typer.Argument(help="The folder of a finished run that this site trained in.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write it here, to be handed on.")] = None,
) -> None:
    """Write a signed file of what this site's records say of a run: what left, at what privacy, attacked how."""
    from fedgraft.client.cli.evidence_commands import write_passport

    write_passport(home, run, out)


@app.command("release")
def release(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    home: Home,
    study_ref: Annotated[
        str | None,
        typer.Argument(metavar="[STUDY]", help="Its digest (8 digits will do), its file, or a run's folder."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="What would leave, at what price; nothing is decided.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="Attack it with this site's own patients first.")] = False,
    sign: Annotated[bool, typer.Option("--sign", help="Let it leave.")] = False,
    refuse: Annotated[bool, typer.Option("--refuse", help="Let nothing more of the study leave, for ever.")] = False,
    by: By = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Answers that wait for a person, where policy says `release: hold`: list, show, attack, sign or refuse them."""
    from fedgraft.client.cli.release_commands import chosen
    from fedgraft.client.cli.release_commands import release as carry_out

    what = chosen(show=show, audit=audit, sign=sign, refuse=refuse)
    carry_out(home, study_ref, what, (by, passphrase_file), as_json=as_json)


@app.command("adapt")
def adapt(  # noqa: PLR0913, PLR0917 - a command's options are its parameters
    home: Home,
    run: Annotated[str, typer.Argument(help="A finished run's folder, or weights with heads.")],
    fit: Annotated[Literal["tune", "ridge", "ncm", "lda"], typer.Option(help="A few steps; or heads alone.")] = "tune",
    shots: Annotated[int | None, typer.Option(min=1, help="Training cases of each class; all if not given.")] = None,
    task: Annotated[str | None, typer.Option(help="The task whose classes --shots counts; the first.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of tune.")] = 20,
    lr: Annotated[float, typer.Option(help="Their rate.")] = 1e-3,
    common: Annotated[float, typer.Option(min=0, help="For how many cases the sites' common sums count.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Which cases --shots draws.")] = 0,
    data: Annotated[Path | None, typer.Option(help="The images, for a site without a site.yaml.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Their labels, a CSV file.")] = None,
    kind: Annotated[str, typer.Option(help=KINDS)] = "dicom",
    as_json: AsJson = False,
) -> None:
    """Fit a finished model to this site's own few cases. Works offline; nothing leaves."""
    from fedgraft.client.cli.deployed_commands import cohort_of
    from fedgraft.client.inference.adapt import AdaptRequest
    from fedgraft.client.inference.adapt import adapt as carry_out
    from fedgraft.common.study.methods.fit import Fit

    spec = cohort_of({"kind": kind, "root": data, "labels": labels}) if data is not None else None
    asked = Fit(how=fit, steps=steps, lr=lr, common=common)
    carry_out(AdaptRequest(run, home, asked, shots, task, seed, spec), as_json=as_json)


@app.command("embed")
def embed(
    home: Home,
    weights: Annotated[str, typer.Option(help="The extractor: an id of `fedgraft weights list`, or a folder.")],
    out: Annotated[Path, typer.Option(help="The new file, NAME.npz. It tells of patients what images tell.")],
    data: Annotated[Path | None, typer.Option(help="The images, for a site without a site.yaml.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Their labels, a CSV file.")] = None,
    kind: Annotated[str, typer.Option(help=KINDS)] = "dicom",
) -> None:
    """Make features of this site's images with local weights, for studies whose input is features."""
    from fedgraft.client.cli.deployed_commands import cohort_of
    from fedgraft.client.inference.embed import embed as carry_out

    spec = cohort_of({"kind": kind, "root": data, "labels": labels}) if data is not None else None
    carry_out(home, spec, weights, out)


@app.command("review")
def review(
    home: Home,
    study_ref: PendingStudy,
    as_json: AsJson = False,
) -> None:
    """What a study would run here, what would leave, and what it costs."""
    from fedgraft.client.cli import governance_commands as decisions

    decisions.review_study(home, study_ref, as_json=as_json)


@app.command("approve")
def approve(
    home: Home,
    study_ref: PendingStudy,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take an approval back.")] = False,
    by: By = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Let a study run here; the site refuses all others."""
    from fedgraft.client.cli import governance_commands as decisions

    if withdraw:
        decisions.withdraw_study(home, study_ref)
    else:
        decisions.approve_study(home, study_ref, (by, passphrase_file))


def _code(path: Path | None) -> str:
    if path is not None:
        from fedgraft.common.base.errors import InputError

        try:
            return path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}.", fix="It holds the kit's code.") from None
        except UnicodeError:
            raise InputError(f"{path}: holds no code.", fix="It is one line of letters and digits.") from None
    return str(typer.prompt("Code of the kit", hide_input=True)).strip()
