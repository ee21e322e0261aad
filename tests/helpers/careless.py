"""Ways in which a site could believe a coordinator that lies, each a change of one rule of the real site."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.ledger import AlreadyCharged, ChargeRefused, Ledger
from fedgraft.client.privacy.masking import masked_upload, used_masks
from fedgraft.client.privacy.masking.masked_upload import Accepted, Sealer
from fedgraft.client.runtime.site import Site
from fedgraft.client.runtime.visit.admission import Admission
from fedgraft.client.runtime.visit.local_state import LocalState
from fedgraft.client.runtime.visit.progress import Progress
from fedgraft.client.runtime.visit.received_state import ReceivedState
from fedgraft.client.runtime.visit.work import Worker
from fedgraft.common.protocol.instructions import Answer, Instruction
from fedgraft.common.secure_aggregation.masking import Context
from fedgraft.common.study.plan import Stage
from fedgraft.common.study.schedule import Step, step_at

Patch = pytest.MonkeyPatch


def _believing(patch: Patch, honest: Callable[[Instruction, Step], dict[str, Any]]) -> None:
    """The site looks at what the study says instead of what the instruction says, in some fields."""
    real = Admission._step

    def lax(self: Admission, asked: Instruction) -> Step:
        step = step_at(self._study, asked.exchange)
        return real(self, asked if step is None else replace(asked, **honest(asked, step)))

    patch.setattr(Admission, "_step", lax)


def stage_not_checked(patch: Patch) -> None:
    _believing(patch, lambda _, step: {"stage": step.stage})


def round_not_checked(patch: Patch) -> None:
    _believing(patch, lambda _, step: {"round": step.round})


def split_not_checked(patch: Patch) -> None:
    _believing(patch, lambda *_: {"evaluate": None})


def work_flag_not_checked(patch: Patch) -> None:
    _believing(patch, lambda _, step: {"work": step.work})


def study_not_checked(patch: Patch) -> None:
    real = Admission.admit
    patch.setattr(Admission, "admit", lambda self, asked: real(self, replace(asked, study=self._study.digest)))


def turn_not_checked(patch: Patch) -> None:
    patch.setattr(Progress, "in_turn", lambda self, step: True)


def each_greeting_leads_one_back(patch: Patch) -> None:
    def in_turn(self: Progress, step: Step) -> bool:
        known = self._read()
        again = known.greeted and (step.exchange >= known.last - 1 or step.exchange == 1)
        return step.exchange >= known.last or again

    patch.setattr(Progress, "in_turn", in_turn)


def own_entries_not_put_aside(patch: Patch) -> None:
    """A course that begins anew finds those of the course before, and tidies them up."""
    patch.setattr(LocalState, "set_aside", lambda self: None)


def turn_not_written(patch: Patch) -> None:
    patch.setattr(Progress, "take_up", lambda self, step, work: None)


def strangers_taken(patch: Patch) -> None:
    """Entries that the model does not have are passed over in silence."""
    real = ReceivedState.take

    def lax(self: ReceivedState, asked: Instruction, *rest: Any) -> None:
        known = {key: array for key, array in asked.tensors.items() if key != "stranger"}
        real(self, replace(asked, tensors=known), *rest)

    patch.setattr(ReceivedState, "take", lax)


def own_entries_deleted_before_the_look(patch: Patch) -> None:
    """What the site keeps for itself is tidied up before it is clear that the instruction is one of the study's."""
    real = Site._visit

    def hasty(self: Site, asked: Instruction) -> Answer:
        self._local_state.before(asked.exchange)
        return real(self, asked)

    patch.setattr(Site, "_visit", hasty)


def bare_entries_allowed(patch: Patch) -> None:
    patch.setattr(Worker, "_refuse_bare_entries", lambda *_: None)


def replies_not_kept(patch: Patch) -> None:
    patch.setattr(PrivacyGuard, "keep", lambda *_: None)


def figures_not_kept(patch: Patch) -> None:
    patch.setattr(PrivacyGuard, "keep_metrics", lambda *_: None)


def rounds_computed_anew(patch: Patch) -> None:
    """A round that was charged is computed again, for nothing."""
    real = Ledger.charge

    def generous(self: Ledger, *facts: Any) -> Any:
        try:
            return real(self, *facts)
        except (AlreadyCharged, ChargeRefused):
            return None

    patch.setattr(Ledger, "charge", generous)


def _context_without(patch: Patch, **fixed: Any) -> None:
    real = Context.digest
    patch.setattr(masked_upload, "Context", type("Context", (Context,), {}))

    def narrow(self: Context, *about: Any) -> bytes:
        said = {one.name: getattr(self, one.name) for one in fields(Context)}
        return real(Context(**said | fixed), *about)

    patch.setattr(masked_upload.Context, "digest", narrow)


def masks_without_the_split(patch: Patch) -> None:
    _context_without(patch, evaluate=None)


def masks_without_what_came(patch: Patch) -> None:
    _context_without(patch, received="")


def masks_without_what_is_beside(patch: Patch) -> None:
    patch.setattr(ReceivedState, "everything", property(lambda self: self.entries))


def one_group_per_stage(patch: Patch) -> None:
    """The sites of an earlier stage are forgotten in the next."""
    real, stages = Sealer.accept, []

    def accept(self: Sealer, asked: Instruction, stage: Stage) -> Accepted:
        stages[:] = [asked.stage]
        return real(self, asked, stage)

    def groups(db: sqlite3.Connection, study: str, part: str) -> set[tuple[str, ...]]:
        asked = "SELECT DISTINCT sites FROM sums WHERE study = ? AND part = ? AND stage = ?"
        return {tuple(sites.split("\n")) for (sites,) in db.execute(asked, (study, part, stages[0]))}

    patch.setattr(Sealer, "accept", accept)
    patch.setattr(used_masks, "_groups", groups)


def any_group(patch: Patch) -> None:
    patch.setattr(Sealer, "_changes", lambda *_: True)


def lost_masks_forgotten(patch: Patch) -> None:
    """A site without its file of used masks begins a new one."""
    real = Sealer.greet
    patch.setattr(Sealer, "greet", lambda self, been_here=False: real(self, been_here=False))


def numbers_used_again(patch: Patch) -> None:
    def lax(db: sqlite3.Connection, study: str, nonce: str, number: int) -> None:
        row = db.execute("SELECT nonce FROM runs WHERE study = ?", (study,)).fetchone()
        if row is None or row[0] != nonce:
            raise Refused(masked_upload.Code.MASK_REUSED)
        db.execute("DELETE FROM sums WHERE number = ?", (number,))

    patch.setattr(used_masks, "_check", lax)
