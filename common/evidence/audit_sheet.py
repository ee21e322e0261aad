"""An audit sheet in words: what a hospital's own attacks on a model found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOT_TESTED = "not_tested"


def audit_in_words(audit: Mapping[str, Any]) -> list[str]:
    """The lines that a person reads, from the content of an audit's part."""
    counts = audit["patients"]
    lines = [
        f"Attacks of site {audit['site']} on model {audit['model'][:12]}",
        f"of study {audit['study_name']} ({audit['study'][:12]}),",
        f"with its own patients: {counts['members']} in training, {counts['held_out']} held out"
        + (" (coarse numbers)" if counts["coarse"] else ""),
        "",
        "Can it be told who was in training?",
    ]
    for row in audit["membership"]:
        lines += list(membership_in_words(row))
    lines += [
        "",
        "Does a patient come back from the first update that left?",
        f"  {_reconstruction(audit['reconstruction'])}",
    ]
    lines += ["", "Does private training at this site keep its promise?", f"  {_canaries(audit['canaries'])}"]
    return lines


def verdict(row: Mapping[str, Any]) -> str:
    """One attack on who was in training, in words."""
    if NOT_TESTED in row:
        return f"not tested: {row[NOT_TESTED]}"
    if row["finds_members"]:
        return "members are found"
    return (
        "members are not found, but some sign of them is there"
        if row["auc_interval"][0] > 0.5
        else "no sign of members"
    )


def membership_in_words(row: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one attack on who was in training."""
    yield f"  {row['target']}, {row['attack']}: {verdict(row)}"
    if NOT_TESTED not in row:
        yield f"    AUC {row['auc']:.2f} ({_range(row['auc_interval'])}); chance is 0.50"
        yield (
            f"    share of members found where at most 1 % of others are: {row['tpr']:.1%} "
            f"({_percent(row['tpr_interval'])}); chance is 1 %"
        )
        yield f"    others taken for members: {row['fpr']:.1%} ({_percent(row['fpr_interval'])})"


def _reconstruction(found: Mapping[str, Any]) -> str:
    if NOT_TESTED in found:
        return f"not tested: {found[NOT_TESTED]}"
    what = "" if found["sees_inputs"] else " (as features of the last layer, not as images)"
    exact = "to the bit what left" if found["as_logged"] else "made again, and not to the bit what left"
    return (
        f"{found['found']} of {found['patients']} patients come back at {found['psnr_db']:g} dB or more{what}; "
        f"of as many held out {found['found_held_out']}. The update attacked is {exact}."
    )


def _canaries(found: Mapping[str, Any]) -> str:
    if NOT_TESTED in found:
        return f"not tested: {found[NOT_TESTED]}"
    kept = "keeps" if found["lower_bound"] <= found["claimed"] else "BREAKS"
    return (
        f"{found['canaries']} made-up patients, {found['steps']} steps with the noise that the ledger has: epsilon "
        f"is at least {found['lower_bound']:.2f} (95 %), claimed are {found['claimed']:.2f}: "
        f"the trainer {kept} its promise."
    )


def _range(interval: list[float]) -> str:
    return f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"


def _percent(interval: list[float]) -> str:
    return f"95 % interval {interval[0]:.1%} to {interval[1]:.1%}"
