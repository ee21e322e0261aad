"""What a process of a site keeps between messages: its configuration, its studies, and the model that they share."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients, load_cohort
from fedgraft.client.data.cohorts.splits import TiedSplits
from fedgraft.client.enrolment.cohort_request import cohort_request, source_request
from fedgraft.client.enrolment.config import SiteConfig, read_config
from fedgraft.client.enrolment.pseudonyms import place_of
from fedgraft.client.governance.approval import is_approved
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.plugins import demand_plugins, demand_readers
from fedgraft.client.governance.records import Records
from fedgraft.client.governance.release.held_answers import HeldAnswers
from fedgraft.client.privacy.guard.final_step import final_exchange
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.masking.masked_upload import Sealer
from fedgraft.client.runtime.log import close, site_log
from fedgraft.client.runtime.site import Site
from fedgraft.client.runtime.visit.hold import ReleaseHold
from fedgraft.client.runtime.visit.progress import progress_file, taken_up
from fedgraft.client.training.model.local_model import LocalModel, NoGpu, device_named
from fedgraft.common.base.errors import FedgraftError, InputError
from fedgraft.common.identity.person_book import PersonBook
from fedgraft.common.protocol.instructions import Code
from fedgraft.common.protocol.routing import requires_source
from fedgraft.common.study.study import Study, parse_study


class Session:
    """One site: the configuration as its file is now, and the studies that it is in."""

    def __init__(self, path: Path, models: Models) -> None:
        """StudyError if the configuration at `path` cannot be read."""
        self.path = path
        self.home = path.parent
        """The folder of the configuration; approvals lie beside it."""
        self._models = models
        self._stamp = _stamp(path)
        self.config = read_config(path)
        self.egress = EgressLog(self.config.state, self.config.witness, sync=self.config.sync)
        self.records = Records(self.config, self.home, exchanges_of, self.egress)
        self._sites: dict[str, Site] = {}
        self.fault = ""
        """Why the file as it is now cannot be used; "" if it can."""

    @property
    def stale(self) -> bool:
        """Whether the file has changed since it was read, so that its policy may be another one."""
        return _stamp(self.path) != self._stamp

    def approves(self, digest: str) -> bool:
        """Whether people here have approved the study, by their signature if policy asks for that."""
        return is_approved(self.home, digest, by_person=self.config.policy.persons == "required")

    def site(self, study: Study) -> Site:
        """The site in this study, with its cohort. Raises Refused or FedgraftError if it cannot take part."""
        if study.digest not in self._sites:
            self._sites[study.digest] = self._open(self._models.same(study))
        return self._sites[study.digest]

    def known(self, digest: str) -> Site | None:
        """The site in a study that it took in, by this process or one before; None if it never did."""
        if digest in self._sites:
            return self._sites[digest]
        path = self.study_file(digest)
        return self.site(_read_study(path, digest)) if path.is_file() else None

    def study_file(self, digest: str) -> Path:
        """Where a study that the site took in is kept."""
        return self.config.state / "studies" / f"{Path(digest).name}.json"

    def close(self) -> None:
        """Let go of the log's file."""
        close(self.config.state)

    def _open(self, study: Study) -> Site:
        config = self.config
        demand_plugins(config.policy, study)
        demand_readers(config)
        wanted = cohort_request(config, study)
        place = place_of(config, study.digest)
        try:
            cohort = load_cohort(config.name, config.cohort, wanted, place)
        except TiedSplits as error:
            raise Refused(Code.POLICY, str(error)) from None
        if odd := ", ".join(f"{problem.reason} {problem.count}" for problem in cohort.problems):
            site_log(config.state).warning("%d cases; left out or odd: %s", len(cohort.inputs), odd)
        if config.source is not None and requires_source(study):
            beside = replace(place, state=place.state / "source")
            source = load_cohort(config.name, config.source, source_request(config, study), beside)
            cohort = replace(cohort, source=source)
        guard = None if config.observer else _guard(study, config, cohort)
        model = self._models.of(study, _device(config), config)
        hold = None if guard is None else _hold(study, self, guard, model)
        return Site(study, cohort, model, place.state, guard, _sealer(study, config), hold=hold, sync=config.sync)


class Models:
    """The one model of a thread: sites of the same study share it, and another study's makes room for it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, torch.device, bool], LocalModel] = {}
        self._study: Study | None = None

    def same(self, study: Study) -> Study:
        """The study as the sites of this thread have it: one object, whoever of them was sent it."""
        if self._study is None or self._study.digest != study.digest:
            self._study = study
        return self._study

    def of(self, study: Study, device: torch.device, config: SiteConfig) -> LocalModel:
        """The study's model on that device; torch then works with the site's threads, or as it likes if 0."""
        if config.threads and torch.get_num_threads() != config.threads:
            torch.set_num_threads(config.threads)
        key = study.digest, device, config.compile
        if key not in self._known:
            self._known = {key: LocalModel(study, device, compile=config.compile)}
        return self._known[key]


class Sessions(threading.local):
    """The sessions of one thread, by the path of their configuration."""

    def __init__(self) -> None:
        self._open: dict[Path, Session] = {}
        self._models = Models()

    def at(self, path: Path) -> Session:
        """The session of the site whose configuration is at `path`, read anew if the file has changed.

        So a policy that was tightened acts from the next message on. If the file can no longer be read, the session
        says so (`fault`), and the site takes part in nothing. StudyError if it could not be read from the start.
        """
        known = self._open.get(path)
        if known is None:
            known = self._open[path] = Session(path, self._models)
        elif known.stale:
            try:
                fresh = Session(path, self._models)
            except FedgraftError as error:
                known.fault = str(error)
                return known
            known.close()
            known = self._open[path] = fresh
        return known

    def forget(self) -> None:
        """Let go of all that this thread keeps, so that a second run in one process starts clean."""
        for session in self._open.values():
            session.close()
        self._open, self._models = {}, Models()


def exchanges_of(config: SiteConfig, digest: str) -> frozenset[int]:
    """The exchanges of a study that the site's record of progress has."""
    return taken_up(_record_of(config.folder(digest), digest))


@lru_cache(maxsize=4096)
def _record_of(folder: Path, digest: str) -> Path:
    """Where the record of progress is: asked at every visit."""
    return progress_file(folder, digest)


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced, even if its own time is set back."""
    try:
        found = os.stat(path)  # noqa: PTH116 - asked twice at every visit
    except OSError:
        return 0, 0, 0
    return found.st_ctime_ns, found.st_size, found.st_ino


def _device(config: SiteConfig) -> torch.device:
    try:
        return device_named(config.device)
    except NoGpu:
        raise Refused(Code.NO_GPU, f"there is no device {config.device}") from None


def _guard(study: Study, config: SiteConfig, cohort: Cohort) -> PrivacyGuard:
    patients = learning_patients(study, cohort)
    return PrivacyGuard(
        study,
        config.policy,
        config.state,
        patients,
        is_source=config.public_source,
        witness=config.witness,
        patients_known=config.cohort.knows_patients,
    )


def _hold(study: Study, session: Session, guard: PrivacyGuard, model: LocalModel) -> ReleaseHold:
    """What keeps the last that leaves; also where policy holds nothing now, since what was refused stays refused."""
    policy, held = session.config.policy, HeldAnswers(session.config.state, study.digest)
    final = final_exchange(study, model.tags, guard.asked_in) if policy.release == "hold" else None
    return ReleaseHold(held, final, PersonBook(session.home), required=policy.persons == "required")


def _sealer(study: Study, config: SiteConfig) -> Sealer | None:
    """What masks the replies in secure aggregation; observers answer in the open. Raises Refused if the site cannot."""
    if not study.secure_aggregation or config.observer:
        return None
    if config.secure_aggregation is None:
        raise Refused(Code.NO_SECURE_AGGREGATION, "the study has secure aggregation, and the site's file no key for it")
    try:
        return Sealer(study, config.secure_aggregation, config.name, config.state)
    except InputError as error:
        raise Refused(Code.NO_SECURE_AGGREGATION, str(error)) from None


def _read_study(path: Path, digest: str) -> Study:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise FedgraftError(f"{path}: is not the study that this site took in.")
    return parse_study(json.loads(data), str(path))
