"""The parts of `site check`, one after the other. Trouble in one is a line of the report and does not stop the rest."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.data.cohorts.scan import files_of, names_of
from fedgraft.client.enrolment.cohort_request import read_cohort
from fedgraft.client.enrolment.config import SiteConfig
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.server_address import server_of
from fedgraft.client.preflight.baseline import Say, check_baseline
from fedgraft.client.preflight.connection import check_connection
from fedgraft.client.preflight.data import check_data
from fedgraft.client.preflight.environment import check_environment
from fedgraft.client.preflight.policy import check_policy
from fedgraft.client.preflight.report import Findings, Report, ReportPart
from fedgraft.client.preflight.training import check_training
from fedgraft.client.training.model.local_model import NoGpu, device_named
from fedgraft.common.base.errors import ENDS, DataError, InputError
from fedgraft.common.study.inputs import ImageInput
from fedgraft.common.study.study import Study

PARTS = ("environment", "data", "training", "connection", "policy")
DETAILS = "check-details.txt"
"""In a site's home folder: what may not be shared, names of files and texts of errors."""


@dataclass(frozen=True)
class SiteUnderCheck:
    """A site's home folder and configuration."""

    home: Path
    config: SiteConfig


class Check:
    """One check of one site, against a study if there is one. The cohort is read once and serves all parts."""

    def __init__(self, site: SiteUnderCheck, study: Study | None, say: Say) -> None:
        self._site = site
        self._study = study
        self._say = say
        self._cohort: Cohort | None = None
        self._told = False

    def run(self, parts: Collection[str] = PARTS, *, baseline: bool = False) -> Report:
        """Carry out the parts, in their order."""
        work: dict[str, Callable[[], Findings]] = {
            "environment": self._environment,
            "data": lambda: self._on_cohort(self._data),
            "training": lambda: self._on_cohort(self._training),
            "connection": self._connection,
            "policy": lambda: self._on_cohort(self._policy),
        }
        chosen = {name: work[name] for name in PARTS if name in parts}
        if baseline:
            chosen["baseline"] = lambda: self._on_cohort(self._baseline)
        done = []
        for name, part in chosen.items():
            self._say(f"{name} ...")
            started = time.perf_counter()
            found = _survived(part)
            done.append(ReportPart(name, time.perf_counter() - started, found))
        return Report((self._study.name, self._study.digest) if self._study else None, tuple(done))

    def _connection(self) -> Findings:
        site, named = SiteHome(self._site.home), self._site.config.server
        if named is not None or not site.has_joined:
            return check_connection(named)
        try:
            return check_connection(server_of(site))
        except InputError as error:
            found = Findings(private=[str(error)])
            fix = "Take over the coordinator's kit again, or name `server` in site.yaml."
            found.fails("server", "site.yaml names no server, and what the kit said cannot be read", fix)
            return found

    def _environment(self) -> Findings:
        size = 0
        if self._study is not None and isinstance(self._study.input, ImageInput):
            with contextlib.suppress(DataError):  # which the part about data tells
                count = len(files_of(self._site.config.cohort).files)
                size = 2 * self._study.input.channels * self._study.input.size**2 * count
        return check_environment(self._site.config, self._site.home, size)

    def _data(self, study: Study, cohort: Cohort) -> Findings:
        spec = self._site.config.cohort
        names = names_of(spec)
        return check_data(cohort, spec, study, names)

    def _training(self, study: Study, cohort: Cohort) -> Findings:
        return self._on_device(lambda device: check_training(study, cohort, device))

    def _policy(self, study: Study, cohort: Cohort) -> Findings:
        return check_policy(self._site.config, study, cohort)

    def _baseline(self, study: Study, cohort: Cohort) -> Findings:
        return self._on_device(lambda device: check_baseline(study, cohort, device, self._say))

    def _on_device(self, look: Callable[[torch.device], Findings]) -> Findings:
        try:
            return look(device_named(self._site.config.device))
        except NoGpu:
            found = Findings()
            found.skipped("device", "the GPU that site.yaml asks for is not there")
            return found

    def _on_cohort(self, look: Callable[[Study, Cohort], Findings]) -> Findings:
        found = Findings()
        if self._study is None:
            found.skipped("study", "needs a study: fedgraft site check STUDY")
            return found
        if self._cohort is None:
            left_out: list[str] = []
            try:
                self._cohort = read_cohort(self._site.config, self._study, left_out, full=True)
            except DataError as error:
                found.private.append(str(error))
                if not self._told:  # on the terminal of whoever asked, and not in the report
                    self._say(f"For you alone: {error}")
                self._told = True
                fix = f"See {DETAILS} of the site's folder for what is wrong, and correct the data or site.yaml."
                found.fails("cohort", "the data cannot be made into a cohort for this study", fix)
                return found
            finally:
                found.private += [f"left out: {line}" for line in left_out]
        seen = look(self._study, self._cohort)
        return Findings(found.lines + seen.lines, found.private + seen.private)


def _survived(part: Callable[[], Findings]) -> Findings:
    """What the part found; if it broke down, a line that says so, since the other parts are worth having."""
    try:
        return part()
    except ENDS:
        raise
    except BaseException:  # the text of an exception may name patients: it is for the site's people alone
        found = Findings(private=[traceback.format_exc()])
        fix = f"See {DETAILS} of the site's folder; if it is not clear, tell whoever maintains fedgraft."
        found.fails("broken", "this part of the check did not come to its end", fix)
        return found
