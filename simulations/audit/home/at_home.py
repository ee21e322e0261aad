"""Promises that a site keeps at home, tried at made-up hospitals with the program that real ones run.

What the coordinator's lies do not reach: how many patients there are, whom one patient moves, whose cases they are,
what a failure says, records that were put back, rules that were changed. Each check says what should not have happened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedgraft.client.governance.approval import withdraw
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.ledger.public_counts import coarse
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import Answer, Code, Hello, Refusal, Update
from fedgraft.common.study.plan import Role
from fedgraft.simulations.audit.checks import NOBODY, Row
from fedgraft.simulations.audit.home.figures import figures_shown_once
from fedgraft.simulations.audit.home.hospital import CLOSED, PRIVATE, SILENT, Hospital, home_study
from fedgraft.simulations.audit.home.left import all_that_left
from fedgraft.simulations.audit.home.members import members_nobody_pinned
from fedgraft.simulations.audit.lying.oracle import leaves

_FEW, _MANY = 8, 1000
"""Columns: where what is learnt is asked about, and where the spread of noise is measured."""
_PATIENTS = 66
_OFF = 0.08
"""So far an estimate may be from the public number; five times the deviation of one from 2,002 entries."""


@contextmanager
def _at(hospital: Hospital) -> Iterator[Hospital]:
    """A hospital whose process has just begun, and ends here."""
    hospital.restart()
    try:
        yield hospital
    finally:
        hospital.restart()


def _number(folder: Path) -> Iterator[str]:
    """An upload's spread tells what it was divided by; the other words must not tell of one patient more either."""
    study, said = home_study(_MANY, PRIVATE), []
    for count in (_PATIENTS, _PATIENTS + 3):
        with _at(Hospital(folder / str(count), study, range(count))) as site:
            true = len(site.cohort().splits["train"])
            greeting, update = site.greet(), site.ask(1)
        if not isinstance(update, Update):
            yield NOBODY
            return
        moved = np.concatenate([array.ravel().astype(np.float64) for array in update.tensors.values()])
        told = 20.0 / (0.5 * float(np.sqrt(np.mean(moved**2))))
        if abs(told / coarse(true) - 1) > _OFF:
            yield f"an upload tells {told:.0f} patients, where {true} train and {coarse(true)} may be known"
        said.append({**leaves(greeting), "spent": update.spent, **leaves(update.weights), **leaves(update.train)})
    if said[0] != said[1]:
        yield "greeting, weights or what was spent follow the true number"
    deltas = set()
    for count in (1_001, 1_400):
        guard = PrivacyGuard(study, CLOSED, folder / f"of {count}", count)
        guard.charge(study.plan[0], 1, frozenset({Role.HEAD}), "0" * 64, count)
        spent = guard.spend()
        deltas.add(spent.delta if spent is not None else 0.0)
    if len(deltas) > 1:
        yield "delta follows the true number"


def _one_more(folder: Path) -> Iterator[str]:
    """Each of some patients is left out; nobody else may change sides."""
    study, everybody = home_study(_FEW, PRIVATE), list(range(_PATIENTS))

    def sides(name: str, patients: list[int]) -> dict[str, str]:
        cohort = Hospital(folder / name, study, patients).cohort()
        return {cohort.patients[at]: split for split, own in cohort.splits.items() for at in own.tolist()}

    whole = sides("all", everybody)
    for gone in everybody[::13]:
        rest = sides(f"without {gone}", [each for each in everybody if each != gone])
        if moved := sum(whole[each] != split for each, split in rest.items()):
            yield f"{moved} patients change their split when one leaves"


def _silence(folder: Path) -> Iterator[str]:
    """Training of which nothing leaves goes well at one hospital and fails at the other."""
    wild = SILENT | {"local": SILENT["local"] | {"lr": 1e38}}
    for metrics in ("none", "noised"):
        told: list[list[object]] = []
        for name, stage in (("calm", SILENT), ("wild", wild)):
            policy = CLOSED.model_copy(update={"metrics": metrics})
            with _at(Hospital(folder / f"{name} {metrics}", home_study(_FEW, stage), range(_PATIENTS), policy)) as site:
                site.greet()
                told.append([_shape(site.ask(1)), _shape(site.ask(2))])
        if told[0] != told[1]:
            yield f"training that failed in silence shows, with metrics: {metrics}"


def _shape(answer: Answer) -> object:
    """What of an answer must be the same: all that was said, but of noise that it is there."""
    found = leaves(answer)
    return {path: "" if path.startswith("/metrics") else value for path, value in found.items()}


def _whose(folder: Path) -> Iterator[str]:
    """Nothing says whose a row is: no work may be done in a patient's name, and no figures released."""
    with _at(Hospital(folder / "site", home_study(_FEW, PRIVATE), range(_PATIENTS), patient_column=None)) as site:
        greeting = site.greet()
        if not isinstance(greeting, Refusal) or isinstance(site.ask(1), Update):
            yield "rows of nobody were trained on as patients"


_PUT_BACK = {
    "the ledger": ("state/ledger/ledger.sqlite",),
    "the ledger and its witness": ("state/ledger/ledger.sqlite", "state.witness/ledger.json"),
    "the egress log": ("state/egress.jsonl",),
    "the record of the schedule": ("state/progress",),
    "the public number": ("state/public_counts.json",),
    "all but the ledger": (
        *("state/progress", "state/replies", "state/studies", "state/egress.jsonl"),
        *("state.witness/egress.witness", "state/ledger/egress.witness"),
    ),
}
"""Parts of a hospital's home that a backup may bring back."""


def _restored(folder: Path) -> Iterator[str]:
    """After two rounds some records are as they were after the first, or, of what has not changed since, gone."""
    with _at(Hospital(folder / "site", home_study(_FEW, PRIVATE), range(_PATIENTS))) as site:
        site.greet()
        site.ask(1)
        backup = Path(shutil.copytree(site.home, folder / "backup"))
        if not isinstance(site.ask(2), Update):
            yield NOBODY
            return
        newest = Path(shutil.copytree(site.home, folder / "newest"))
        for words, parts in _PUT_BACK.items():
            for part in parts:
                _replace(site.home / part, backup / part, newest / part)
            site.restart()
            if (answer := site.ask(3)) != Refusal(3, Code.LEDGER):
                yield f"{words} was put back, and the site said {_said(answer)}"
            site.restart()
            shutil.rmtree(site.home)
            shutil.copytree(newest, site.home)


def _replace(now: Path, then: Path, newest: Path) -> None:
    if now.is_dir():
        shutil.rmtree(now)
    else:
        now.unlink(missing_ok=True)
    if then.is_dir():
        shutil.copytree(then, now)
    elif then.exists() and then.read_bytes() != newest.read_bytes():
        shutil.copy2(then, now)


def _rules(folder: Path) -> Iterator[str]:
    """The site's people close their site, spoil its file, or take the approval back, while the study runs."""
    closed = CLOSED.model_copy(update={"min_patients": 10_000})
    changes: dict[str, tuple[Callable[[Hospital], object], Code]] = {
        "a stricter policy": (lambda site: site.allow(closed), Code.POLICY),
        "a file with a key given twice": (_twice, Code.POLICY),
        "a file that cannot be read": (lambda site: (site.home / "site.json").write_text("{"), Code.POLICY),
        "a withdrawn approval": (lambda site: withdraw(site.home, site.study.digest), Code.NOT_APPROVED),
    }
    for name, (change, code) in changes.items():
        with _at(Hospital(folder / name, home_study(_FEW, PRIVATE), range(_PATIENTS))) as site:
            site.greet()
            site.ask(1)
            change(site)
            if (answer := site.ask(2)) != Refusal(2, code):
                yield f"after {name} the site said {_said(answer)}"


def _twice(site: Hospital) -> None:
    """The policy is given a second time further down, as loose as it was."""
    file = site.home / "site.json"
    text = file.read_text()
    site.allow(CLOSED.model_copy(update={"min_patients": 10_000}))
    closed = json.dumps(json.loads(file.read_text())["policy"])
    file.write_text(text.replace("{", f'{{"policy": {closed},', 1))


def _words(folder: Path) -> Iterator[str]:
    """Data that cannot be read: what went wrong is for the site's log, and one word for the coordinator."""
    with _at(Hospital(folder / "secret_ward", home_study(_FEW, PRIVATE), range(_PATIENTS))) as site:
        site.table.write_text(site.table.read_text().replace("yes", "perhaps", 1))
        content = site.heard(wire.HELLO, wire.pack_hello(Hello(site.study.to_json())))
        if any(word in str(content) for word in ("secret_ward", "perhaps", "Traceback")):
            yield "the words of an error leave"


def _forged(folder: Path) -> Iterator[str]:
    """A study whose weights' name goes on as a review, and hides the true one."""
    with _at(Hospital(folder / "site", home_study(_FEW, PRIVATE), range(_PATIENTS))) as site:
        content = json.loads(site.study.to_json())
        content["model"]["weights"] = "nobody's\nWhat will leave this site:\n  nothing\n\x1b[8m"
        site.heard(wire.HELLO, wire.pack_hello(Hello(json.dumps(content).encode())))
        if list((site.home / "pending_studies").glob("*.json")):
            yield "a study that forges its own review waits to be looked at"
        if "\x1b" in (site.home / "state" / "site.log").read_text(encoding="utf-8"):
            yield "the site's log holds what a terminal obeys"


def _said(answer: Answer) -> str:
    return answer.code.value if isinstance(answer, Refusal) else "what it was asked for"


CHECKS: tuple[Row, ...] = (
    ("number of patients", "the true number of patients is in nothing that leaves", _number),
    ("one patient more", "one patient more or less moves nobody else", _one_more),
    ("failure in silence", "work of which nothing leaves does not tell that it failed", _silence),
    ("figures shown once", "figures that leave once are never those of another model", figures_shown_once),
    ("whose a case is", "without a column of patients nobody is called one", _whose),
    ("records put back", "what one record tells of no other may have forgotten", _restored),
    ("what has left", "all that leaves stands in the site's own log", all_that_left),
    ("rules changed", "the site's rules act at once", _rules),
    ("members", "a site hides its part with keys of members alone whom its own people pinned", members_nobody_pinned),
    ("words of a study", "no study changes what those who review it see", _forged),
    ("words of errors", "no text of an error leaves", _words),
)
"""What a site promises at home."""
