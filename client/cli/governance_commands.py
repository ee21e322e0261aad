"""What a hospital's people type to decide whether to take part: `fedgraft site check`, `review` and `approve`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fedgraft.client.data.cohorts.cohort import learning_patients
from fedgraft.client.enrolment.cohort_request import read_cohort
from fedgraft.client.enrolment.config import SiteConfig, read_site, site_home
from fedgraft.client.governance.about_data import about_data
from fedgraft.client.governance.approval import Approval, approve, is_approved, withdraw
from fedgraft.client.governance.pending_studies import find_study
from fedgraft.client.governance.persons.removing import approver_removed
from fedgraft.client.governance.plugins import allowed_to_look, demand_plugins, demand_readers, installed_plugins
from fedgraft.client.governance.review import in_words, review
from fedgraft.client.governance.verdict import StudyVerdict, judge
from fedgraft.client.preflight.check import (
    DETAILS,
    PARTS,
    Check,
    SiteUnderCheck,
)
from fedgraft.client.preflight.report import Level, Report
from fedgraft.client.preflight.shareable import shareable
from fedgraft.common.base.console.terminal import ERR, say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError, PolicyError, StudyError
from fedgraft.common.base.files import write_atomic, write_json
from fedgraft.common.checks.check import check as faults_of
from fedgraft.common.identity.author import author
from fedgraft.common.models.initialise import make_model
from fedgraft.common.models.model import TransferModel
from fedgraft.common.study.study import Study

_MARKS = {Level.FINE: "ok", Level.NOTE: "note", Level.FAILS: "FAILS", Level.SKIPPED: "-"}


def check_site(
    folder: Path | None,
    ref: str | None,
    parts: Collection[str],
    *,
    baseline: bool,
    share: Path | None,
    as_json: bool,
) -> int:
    """Check the site, show the report, and give the exit code: 1 if a line fails. `share` gets one for others."""
    if unknown := sorted(set(parts) - set(PARTS)):
        raise InputError(f"No part of the check is called {', '.join(unknown)}.", fix=f"There are: {', '.join(PARTS)}.")
    if baseline and ref is None:
        raise InputError("--baseline needs a study.", fix="fedgraft site check STUDY --baseline")
    home = site_home(folder)
    for place in (home / DETAILS, *((share,) if share else ())):
        demand_place(place, file=True)
    site, study = SiteUnderCheck(home, read_site(home)), None
    if site.config.threads:
        torch.set_num_threads(site.config.threads)
    with allowed_to_look(site.config.policy):
        demand_readers(site.config)
        if ref is not None:
            study = find_study(home, ref)
            _model_of(study, ref, site.config)
        report = Check(site, study, _progress).run(parts or PARTS, baseline=baseline)
    _keep_details(home, report)
    if share is not None:
        write_json(share, shareable(report))
    if as_json:
        sys.stdout.write(json.dumps(report.content()) + "\n")
    else:
        _show(report)
    return 1 if report.failing else 0


def _keep_details(home: Path, report: Report) -> None:
    try:
        write_atomic(home / DETAILS, "".join(f"{text}\n" for text in report.private).encode(), private=True)
    except OSError as error:
        raise InputError(f"{home / DETAILS}: cannot be written: {error.strerror}.") from None


def review_study(folder: Path | None, ref: str, *, as_json: bool) -> None:
    """Say what a study would do at this site."""
    home = site_home(folder)
    config = read_site(home)
    with allowed_to_look(config.policy):
        content = _reviewed(home, config, find_study(home, ref), ref)
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    for line in in_words(content):
        say(line)


def approve_study(folder: Path | None, ref: str, by: tuple[str | None, Path | None] = (None, None)) -> None:
    """Record that a study may run here, and say what that means. PolicyError if the site's own policy refuses it."""
    content, approval = decide(folder, ref, by)
    for line in in_words(
        content | {"approved": True, "approver_removed": approver_removed(site_home(folder), approval.digest)}
    ):
        say(line)
    who = "" if approval.by is None else f" by {approval.by}" + (", signed" if approval.signed is not None else "")
    say(f"\nApproved on {approval.approved}{who}.")


def decide(
    folder: Path | None, ref: str, by: tuple[str | None, Path | None] = (None, None)
) -> tuple[dict[str, Any], Approval]:
    """Review a study, and record that it may run here: the review and the record. PolicyError as `approve_study`.

    `by` is the name of who decides, and the file of its passphrase.
    """
    home = site_home(folder)
    config = read_site(home)
    who = author(home, *by, required=config.policy.persons == "required")
    with allowed_to_look(config.policy):
        study = find_study(home, ref, whole=True)
        content = _reviewed(home, config, study, ref)
    if content["refused"]:
        raise PolicyError(
            f"This site's policy refuses the study {study.name}: {content['refused']}.", fix=str(content["fix"])
        )
    return content, approve(home, study.digest, study.name, who)


def withdraw_study(folder: Path | None, ref: str) -> None:
    """Record that a study may no longer run here."""
    home = site_home(folder)
    with allowed_to_look(read_site(home).policy):
        # What is no longer installed here can be withdrawn all the same.
        ended = withdraw(home, ref if re.fullmatch(r"[0-9a-f]{64}", ref) else find_study(home, ref).digest)
    say(f"Study {ended.study} is no longer approved, digest {ended.digest}")


def _reviewed(home: Path, config: SiteConfig, study: Study, ref: str) -> dict[str, Any]:
    model = _model_of(study, ref, config)
    verdict: StudyVerdict | None = None
    data: dict[str, Any] = {}
    if not config.observer:
        # What privacy costs, and whether the policy allows it, depends on how many patients there are.
        cohort = read_cohort(config, study, [])
        verdict = judge(config, study, model.tags(), learning_patients(study, cohort))
        data = about_data(config, study, cohort)
    content = review(
        study,
        model,
        config,
        verdict,
        approved=is_approved(home, study.digest, by_person=config.policy.persons == "required"),
    )
    return content | {"data": data, "approver_removed": approver_removed(home, study.digest)}


def show_plugins(folder: Path | None, *, as_json: bool) -> None:
    """What is installed here that studies can use, with what the policy must list to allow it."""
    found = installed_plugins(site_home(folder))
    if as_json:
        sys.stdout.write(json.dumps([asdict(one) | {"allowed": one.allowed} for one in found]) + "\n")
        return
    if not found:
        say("No distribution with plug-ins is installed here.")
    for one in found:
        state = one.odd or ("allowed" if one.allowed else "not what the policy lists" if one.listed else "not listed")
        say(f"{one.distribution} {one.version} ({', '.join(one.brings)}): {state}")
    if new := [one for one in found if one.digest and not one.allowed]:
        say("\nTo allow what your people have looked at, write into `policy` of site.yaml:")
        say("\n".join(["plugins:", *(f"  {one.distribution}: {one.digest}" for one in new)]))


def _model_of(study: Study, source: str, config: SiteConfig) -> TransferModel:
    """A model of the study's shape; StudyError if the study cannot work, PolicyError if its code may not run here."""
    demand_plugins(config.policy, study)
    model = make_model(study)
    if faults := faults_of(study, model.tags()):
        raise StudyError(source, faults)
    return model


def _show(report: Report) -> None:
    for part in report.parts:
        say(f"{part.name} ({part.seconds:.1f} s)")
        for line in part.findings.lines:
            say(f"  {_MARKS[line.level]:5}  {line.name}: {line.description}")
            if line.fix:
                say(f"         -> {line.fix}")
    count = report.failing
    say("Nothing fails." if not count else f"{count} line{'s' * (count > 1)} fail{'s' * (count == 1)}.")
    say(
        "This report is for the people at this site: it names nobody, but its counts are exact. "
        f"{DETAILS} in the site's folder names files. What may be given to others is written by --share FILE."
    )


def _progress(text: str) -> None:
    if ERR.is_terminal:
        ERR.print(text, highlight=False, markup=False, soft_wrap=True)
