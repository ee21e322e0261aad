"""What the front door can say of a study before anything runs: what it will do, and what privacy it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from fedgraft.common.base.console.terminal import OUT, say
from fedgraft.common.base.errors import InputError
from fedgraft.common.checks.check_plugins import read_pinned
from fedgraft.common.checks.explain import (
    Checked,
    check_study,
    describe_task,
    explain,
    sentence,
)
from fedgraft.common.checks.far_source import weights_advice
from fedgraft.common.checks.together import who_is_together
from fedgraft.common.protocol.routing import releases_plainly
from fedgraft.common.secure_aggregation.masking import FEWEST
from fedgraft.common.study.study import Study
from fedgraft.simulations.planning.advice import Advice, advise
from fedgraft.simulations.planning.pricing import Price, price, private_stages


@dataclass(frozen=True)
class AssumedSites:
    """What is supposed of sites: how many patients they train on, and what their noised metrics may cost, if any."""

    patients: tuple[int, ...]
    metrics_epsilon: float | None = None


def explain_study(path: Path, overrides: tuple[str, ...], sites: AssumedSites, *, as_json: bool) -> None:
    """Show a study stage by stage, what it would cost such sites, and what is best trained privately at them."""
    study, _ = read_pinned(path, overrides)
    explained = explain(study, str(path))
    prices = [price(study, count, metrics_epsilon=sites.metrics_epsilon) for count in sites.patients]
    advice = [one for count in sites.patients for one in _advice(study, explained.start, count)]
    together = who_is_together(study, explained.start.architecture.entries)
    advised = weights_advice(study, explained.start.provenance.manifest, explained.start.architecture.tags)
    if as_json:
        facts = {"study": study.name, "digest": study.digest, "plan": explained.rows, "clusters": together}
        facts |= {"weights_advice": advised}
        facts |= {"prices": [asdict(one) for one in prices], "advice": [asdict(one) for one in advice]}
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    say(f"Study {study.name}, digest {study.digest}")
    base_models = f" of {' and '.join(study.model.architectures)}" if study.model.base_models else ""
    say(f"Model: {study.model.backbone}{base_models} from {explained.start.provenance.says}")
    if study.model.base_models:
        say("Its base models are finished: they travel once, stay as they are, and begin with their mean answer.")
    for task in study.tasks:
        say(f"Asks for {describe_task(task)}")
    for number, (stage, row) in enumerate(zip(study.plan, explained.rows, strict=True), start=1):
        say(f"{number}. {stage.name}: {sentence(stage, row)}")
    for sentence_ in (*together, *advised):
        say(sentence_)
    if not study.plan:
        say("Nobody trains, and no entry leaves a site: each measures this model on its test cases, and sends figures.")
    if study.secure_aggregation:
        say(
            f"Masked: the coordinator reads sums over at least {FEWEST} sites, of entries, weights and metrics, and no "
            "site's own. What it reads it can still learn from: masks take nothing away from the sum."
        )
    tags = explained.start.architecture.tags
    plain = [stage.name for stage in study.plan if releases_plainly(stage, tags)]
    if plain:
        say(
            f"No differential privacy in {', '.join(plain)}: whoever receives what leaves there can invert it, "
            "up to single images."
        )
    if any(price.lines for price in prices):
        _show_prices(prices)
    if any(private_stages(study)) and sites.metrics_epsilon is None and not study.secure_aggregation:
        say("A site whose policy says metrics: noised pays for them besides: see --metrics-epsilon.")
    _show_advice(advice)


def _advice(study: Study, begin: Checked, patients: int) -> list[Advice]:
    return list(advise(study, begin.architecture.tags, begin.architecture.sizes, patients))


def _show_advice(advice: Sequence[Advice]) -> None:
    for one in advice:
        say(f"{one.stage}, at {one.patients:,} patients a site: train {one.train}, since {one.reason}.")


def _show_prices(prices: Sequence[Price]) -> None:
    """One row per site size and private stage."""
    table = Table("patients", "delta", "stage", "noise / clip", "patients a step", "steps", "epsilon")
    for one in prices:
        for number, line in enumerate(one.lines):
            size = [str(one.patients), f"{one.delta:.1e}"] if number == 0 else ["", ""]
            step = f"{line.sample_rate * one.patients:.0f} ({line.sample_rate:.0%})"
            table.add_row(
                *size, line.stage, f"{line.noise_multiplier:.2f}", step, str(line.steps), f"{line.epsilon:.2f}"
            )
        if len(one.lines) > 1:
            table.add_row("", "", "all stages", "", "", "", f"{one.epsilon:.2f}")
    OUT.print(table)
    say("Epsilon for adding or removing one patient (or image, where the study says so), by Renyi accounting.")


def plan_privacy(path: Path, overrides: tuple[str, ...], patients: int, *, as_json: bool) -> None:
    """Epsilon of a study against its length and the share of patients in each step, with the noise as it is."""
    study, _ = read_pinned(path, overrides)
    begin = check_study(study, str(path))
    if not any(private_stages(study)):
        raise InputError(f"{path}: no stage is private, so there is nothing to price.", fix="See docs/privacy.md.")
    steps, shares = (0.25, 0.5, 1.0, 2.0, 4.0), (0.25, 0.5, 1.0, 2.0)
    grid = {length: [price(study, patients, longer=length, larger=share) for share in shares] for length in steps}
    if as_json:
        rows = [asdict(one) | {"longer": length} for length, row in grid.items() for one in row]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    _show_prices([price(study, patients)])
    table = Table("rounds x", *(f"patients a step x {share:g}" for share in shares), title="epsilon with this noise")
    for length, row in grid.items():
        table.add_row(f"{length:g}", *(f"{one.epsilon:.2f}" for one in row))
    OUT.print(table)
    _show_advice(_advice(study, begin, patients))
