"""What a person needs before a held answer is let go: what would leave, its price, an attack on it, and the limits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgraft.client.data.cohorts.cohort import load_cohort
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import SiteConfig, read_site, site_home
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.evidence.audit import membership, patient_counts, patient_losses
from fedgraft.client.evidence.passport import ledger_facts
from fedgraft.client.evidence.statement import Statement
from fedgraft.client.governance.plugins import allowed_to_look
from fedgraft.client.governance.release.deciding import decide
from fedgraft.client.governance.release.held_answers import (
    FOLDER,
    Decision,
    HeldAnswer,
    HeldAnswers,
    Verdict,
    studies_held,
)
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.environment import code_digest, fedgraft_version
from fedgraft.common.base.errors import InputError, PolicyError
from fedgraft.common.base.files import read_json
from fedgraft.common.compression.changes import restored
from fedgraft.common.evidence.audit_sheet import NOT_TESTED, membership_in_words
from fedgraft.common.identity.author import Author
from fedgraft.common.protocol.routing import Tags, releases_plainly
from fedgraft.common.study.study import Study, find_study, parse_study


@dataclass(frozen=True)
class HeldRelease:
    """A held answer of the site in `home`, and the study that it is of, as the site took it in."""

    home: Path
    config: SiteConfig
    held: HeldAnswer
    study: Study

    @classmethod
    def of(cls, home: Path | None, ref: str) -> HeldRelease:
        """The newest held answer of a study: its digest (8 digits or more), its file, or a run's folder. InputError."""
        folder = site_home(home)
        config = read_site(folder)
        digest = _digest_of(config, ref)
        held = HeldAnswers(config.state, digest).all()
        waiting = [one for one in held if one.decision is None] or list(held)
        if not waiting:
            raise InputError(f"{ref}: this site holds no answer to that study.", fix="fedgraft site release lists all.")
        source = config.state / "studies" / f"{digest}.json"
        content = read_json(source)
        with allowed_to_look(config.policy):
            study = parse_study(content, str(source))
        if study.digest != digest:
            raise InputError(f"{source}: is not the study that this site took in.")
        return cls(folder, config, waiting[-1], study)

    def price(self) -> dict[str, Any]:
        """What the ledger says of the study, before and after; LedgerError if the ledger cannot be trusted."""
        return ledger_facts(self._statement)

    def audit(self) -> dict[str, Any]:
        """Attack the model that the held answer makes with the site's own patients; the sheet is signed and kept."""
        with allowed_to_look(self.config.policy):
            found = self._attacked()
        self._statement.write("release_audit", {"audit": found}, sheet_in_words(found))
        return found

    def sheet(self) -> dict[str, Any] | None:
        """The newest sheet of an attack on this very answer; None if there is none. InputError if it was changed."""
        document = self._statement.read("release_audit")
        content = None if document is None else document.content("audit")
        return content if content is not None and content["answer"] == self.held.digest else None

    def entries(self, tags: Tags) -> dict[str, np.ndarray]:
        """The model's entries that the coordinator would make of the answer; none of sums, or of figures alone."""
        stage = next((one for one in self.study.plan if one.name == self.held.facts["stage"]), None)
        # What travels may be rounded changes.
        sent = {} if stage is None else restored(stage, tags, self.held.update().tensors, self.held.received())
        return {key: array for key, array in sent.items() if key in tags}

    def unmet(self) -> tuple[str, ...]:
        """What the policy demands before the answer can be signed, and is not so, in words; none if all is met."""
        policy, found = self.config.policy, []
        if (most := policy.release_epsilon_max) is not None:
            found += list(self._too_dear(most))
        if (auc := policy.release_membership_auc_max) is not None:
            found += list(self._told_apart(auc))
        return tuple(found)

    def decide(self, verdict: Verdict, by: Author) -> Decision:
        """Let the answer go, or refuse it. PolicyError with all that the policy demands and is not met."""
        if verdict == "signed" and (unmet := self.unmet()):
            raise PolicyError(
                f"This site's policy does not let exchange {self.held.exchange} go: {'; '.join(unmet)}.",
                fix="Refuse it (--refuse), or see that what is missing is made up for.",
            )
        self.held.update()  # what cannot be sent is not signed
        return decide(self.config, self.held, verdict, by)

    @cached_property
    def _statement(self) -> Statement:
        return Statement(self.home, self.config, self.config.state / FOLDER / self.study.digest, self.study)

    def _too_dear(self, most: float) -> list[str]:
        tags = LocalModel(self.study, torch.device("cpu")).tags
        if plain := [stage.name for stage in self.study.plan if releases_plainly(stage, tags)]:
            return [f"stage {plain[0]} sends without noise, so that no epsilon holds; release_epsilon_max is {most:g}"]
        price = self.price()
        cost = float(price["study"]) if price["charges"] else 0.0
        return [f"the study costs epsilon {cost:.2f}, above release_epsilon_max {most:g}"] if cost > most else []

    def _told_apart(self, most: float) -> list[str]:
        sheet = self.sheet()
        if sheet is None:
            return [
                f"the policy asks for an attack on this answer (release_membership_auc_max {most:g}), and none was "
                f"made: fedgraft site release {self.study.digest[:12]} --audit"
            ]
        found = []
        for row in sheet["membership"]:
            if NOT_TESTED in row:
                found.append(f"the attack {row['attack']} was not tested: {row[NOT_TESTED]}")
            elif row["auc_interval"][1] > most:
                end = row["auc_interval"][1]
                found.append(
                    f"members are told apart {row['attack']} with an AUC of up to {end:.2f}, above "
                    f"release_membership_auc_max {most:g}"
                )
        return found

    def _attacked(self) -> dict[str, Any]:
        study, config = self.study, self.config
        if config.threads:
            torch.set_num_threads(config.threads)
        cohort = load_cohort(config.name, config.cohort, cohort_request(config, study), place_of(config, study.digest))
        local_model = LocalModel(study, torch.device("cpu"))
        loader = Loader(cohort, study.input, local_model.device)
        update, entries = self.held.update(), self.entries(local_model.tags)
        target = "the model as this answer makes it" if entries else "the model that had come"
        if update.tensors and not entries:
            rows = [
                {"target": "the answer", "attack": "all", NOT_TESTED: "sums would leave, and the attack is on models"}
            ]
        else:
            local_model.load({**self.held.received(), **entries})
            rows = list(membership(target, patient_losses(local_model, loader, cohort)))
        return {
            "site": config.name,
            "study": study.digest,
            "study_name": study.name,
            "answer": self.held.digest,
            "exchange": self.held.exchange,
            "fedgraft": fedgraft_version(),
            "code": code_digest(),
            "patients": patient_counts(loader, cohort, exact=config.policy.metrics == "exact"),
            "membership": rows,
        }


def sheet_in_words(sheet: dict[str, Any]) -> list[str]:
    """The lines that a person reads."""
    counts = sheet["patients"]
    lines = [
        f"Attack of site {sheet['site']} on what it holds for exchange {sheet['exchange']} of {sheet['study_name']},",
        f"with its own patients: {counts['members']} in training, {counts['held_out']} held out"
        + (" (coarse numbers)" if counts["coarse"] else ""),
    ]
    return lines + [line for row in sheet["membership"] for line in membership_in_words(row)]


def _digest_of(config: SiteConfig, ref: str) -> str:
    """The study that a person means, among those that are held."""
    known, path = studies_held(config.state), Path(ref)
    if path.exists():
        with allowed_to_look(config.policy):
            return find_study(path / "study.yaml" if path.is_dir() else path)[0].digest
    found = [digest for digest in known if len(ref) >= 8 and digest.startswith(ref)]
    if len(found) != 1:
        held = ", ".join(digest[:12] for digest in known) or "none"
        raise InputError(f"{len(found)} held studies begin with {ref}.", fix=f"Held here: {held}.")
    return found[0]
