"""Running a study on the running server: start it, follow it, start it again if it was killed, and say how it ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import private_folder, write_json
from fedgraft.common.study.study import Study
from fedgraft.server.fleet.presence import AWAY_S, PATIENCE_S
from fedgraft.server.operations.control import RunControl, UnansweredError
from fedgraft.server.provisioning.home import ServerHome
from fedgraft.server.runs.run_folder import REASON, RunFolder

_POLL_S = 1.0
_SERVER_S = 600.0
"""How long the server may be away at least, for example while it restarts; longer if the run's patience is longer."""

_TRIES, _PAUSE_S = 6, 1.0
"""How often a run that was killed is started again without getting one exchange further, and how long that waits after
the second time; each further time twice as long, since what kills it may need time to end."""


_ENDING_S = 30.0
"""So long the process of a run that was stopped may take to end."""


@dataclass(frozen=True)
class Wait:
    """Start when so many of the run's sites are online, all if None; give up after `seconds`.

    Once it has begun, a round waits `away_s` for each site that is away, and `patience_s` for as many as it needs.
    """

    sites: int | None
    seconds: float
    patience_s: float = PATIENCE_S
    away_s: float = AWAY_S


def prepare(study: Study, sites: Collection[str], out: Path, agreement: SupplyAgreement | None = None) -> None:
    """Set up the folder of a deployed run over these sites, pinned to an agreement if there is one.

    InputError if it is in use.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", fix="Choose another --out, or continue that run with --resume.")
    with private_folder(out):
        RunFolder(out).start_deployment(study, sites)
        if agreement is not None:
            RunFolder(out).pin(agreement)


def run_study(home: ServerHome, out: Path, wait: Wait, say: Callable[[str], None]) -> Path:
    """Run what is left of the run in `out`, and return it with result, model and report in it.

    RunError if the run fails or is stopped; it can then be continued.
    """
    out = out.resolve()
    RunFolder(out).demand_deployment()
    RunFolder(out).demand_free(_ENDING_S)
    _wait_for_sites(home, RunFolder(out), wait, say)
    with private_folder(out):
        return _carried_out(home, out, wait, say)


def ask_sites(home: ServerHome, out: Path, wait: Wait, say: Callable[[str], None]) -> SupplyAgreement:
    """Ask the sites of the run that was set up in `out` what they could supply. RunError if that fails."""
    out = out.resolve()
    _wait_for_sites(home, RunFolder(out), wait, say)
    with private_folder(out):
        number = _start(home, out, wait, say, asks=True)
        state, details = _follow(home, number, RunFolder(out), wait)
        found = RunFolder(out).agreement()
        if found is None or not state.startswith("finished"):
            why = details.partition(REASON)[2] or f"Flower ended it as {state}; see {home.logs / 'superexec.log'}."
            raise RunError(f"The sites could not be asked: {why}")
        return found


def _carried_out(home: ServerHome, out: Path, wait: Wait, say: Callable[[str], None]) -> Path:
    tries, reached = 0, -1
    while True:
        number = _start(home, out, wait, say, again=tries > 0)
        say(f"run {number} in {out}")
        state, details = _follow(home, number, RunFolder(out), wait)
        if state == "finished:completed" and (out / "result.json").is_file():
            from fedgraft.server.report import build_report  # plots take seconds to import

            build_report(out)
            return out
        if REASON in details:
            raise RunError(details.partition(REASON)[2])
        if state == "finished:stopped":
            raise RunError("The run was stopped.", fix=f"Continue it with --resume {out}.")
        before, reached = reached, RunFolder(out).checkpoints.reached()
        tries = tries + 1 if reached == before else 1
        if tries > _TRIES:
            raise RunError(f"Flower ended the run as {state}.", fix=f"See {home.logs / 'superexec.log'}.")
        say(f"the run was interrupted ({state}) and goes on after exchange {reached}")
        if tries > 1:
            time.sleep(_PAUSE_S * 2 ** (tries - 2))


def _wait_for_sites(home: ServerHome, run: RunFolder, wait: Wait, say: Callable[[str], None]) -> None:
    """Wait for as many as are wanted, and note in the run's folder who they are: its process waits for them as well.

    That begins a while later, and once more after a kill.
    """
    # Who joined the consortium after the run was begun may come, and is not waited for; who was shut out is not either.
    sites = set(run.sites()) & set(home.admitted().values())
    wanted = len(sites) if wait.sites is None else wait.sites
    ends, told = time.monotonic() + wait.seconds, -1
    while True:
        with RunControl(home) as control:
            there = {node.name for node in control.nodes() if node.online}
        online = len(there if wait.sites is not None else there & sites)
        if online >= wanted:
            run.found_there(there & sites)
            return
        away = ", ".join(sorted(sites - there))
        if time.monotonic() > ends:
            fix = "See `fedgraft server sites`, or ask for fewer with --sites."
            raise RunError(f"{online} of {wanted} sites are online; not: {away}.", fix=fix)
        if online != told:
            say(f"waiting for sites: {online} of {wanted} are online; not: {away}")
            told = online
        time.sleep(_POLL_S)


def _start(
    home: ServerHome, out: Path, wait: Wait, say: Callable[[str], None], *, again: bool = False, asks: bool = False
) -> int:
    """Start the process of a run; `again` if it was interrupted: what did that may take the server away once more."""
    (out / "result.json").unlink(missing_ok=True)
    number = _begun(home, out, wait, say, again=again, asks=asks)
    RunFolder(out).started_as(number)
    if not asks:  # there is nothing to watch, and nothing to continue
        write_json(home.studies / f"{number}.json", {"run": str(out)})
    return number


def _begun(home: ServerHome, out: Path, wait: Wait, say: Callable[[str], None], *, again: bool, asks: bool) -> int:
    """The number of a run that is started once, also where the server goes away before it has told the number.

    Were it started twice, the second process would find the folder taken, and the study would end with that.
    """
    mark, unanswered, ends = secrets.token_hex(8), False, time.monotonic() + max(_SERVER_S, wait.patience_s)
    waits = {"patience_s": float(wait.patience_s), "away_s": float(wait.away_s)}
    while True:
        try:
            with RunControl(home) as control:
                known = control.started(mark) if unanswered else None
                return control.start(out, waits, asks=asks, mark=mark) if known is None else known
        except RunError as error:
            if not (again or isinstance(error, UnansweredError)) or time.monotonic() > ends:
                raise
            if isinstance(error, UnansweredError) and not unanswered:
                say("the server does not answer; waiting for it")
                unanswered = True
        time.sleep(_POLL_S)


def _follow(home: ServerHome, number: int, folder: RunFolder, wait: Wait) -> tuple[str, str]:
    """Wait for the run's end; Flower's word for it, and for its reason.

    Flower notices only after a minute that the process of a run was killed; that its folder is free shows it at once.
    Such a run is stopped, and goes on under another number; a run that somebody else stopped does not.
    """
    heard, worked, lost, asked, stopping = time.monotonic(), False, False, False, False
    while True:
        try:
            # One connection for as long as it holds: TLS anew for every question would cost more than its answer.
            with RunControl(home) as control:
                while True:
                    at_work = folder.is_taken()
                    lost, worked = not at_work and (lost or worked), at_work
                    state, details = control.state(number)
                    if stopping and state == "finished:stopped":
                        return "killed", ""
                    if lost and not state.startswith("finished"):
                        asked = True
                        control.stop(number)
                        return "killed", ""
                    heard = time.monotonic()
                    if state.startswith("finished"):
                        return state, details
                    time.sleep(_POLL_S)
        except RunError as error:
            if asked:  # what is not answered may have been done; a refusal says that the run was over before
                asked, stopping = False, isinstance(error, UnansweredError)
            if time.monotonic() - heard > max(_SERVER_S, wait.patience_s):
                raise
        time.sleep(_POLL_S)
