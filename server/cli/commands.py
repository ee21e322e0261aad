"""What `fedgraft server` does: read, act, and say what came of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fedgraft.common.base.console.terminal import Terminal
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import is_there, read_json
from fedgraft.server.cli.outcome import demand_enough, show_result
from fedgraft.server.provisioning.actions import NOBODY, ActionLog, ByWhom
from fedgraft.server.provisioning.home import ServerHome, expires, soon_to_end
from fedgraft.server.runs.passports import collect_passport
from fedgraft.server.watch.screen import ago

if TYPE_CHECKING:
    from fedgraft.server.operations.deploy import Wait
    from fedgraft.server.operations.overview import RunRow, SiteRow

_out = Terminal(soft_wrap=True, highlight=False)
_POLL_S = 0.5


def collect(run: Path, files: Sequence[Path], home: Path) -> None:
    """Put passports of sites into a run's folder; of a deployed run only with the keys that the server knows."""
    deployed = is_there(run / "deployment.json")
    keys = {name: one.node for name, one in ServerHome(home).sites().items()} if deployed else None
    if keys == {}:
        raise InputError(f"{home}: knows no site's key.", fix="Give the server's folder with --home.")
    for path in files:
        document = collect_passport(run, path, keys)
        known = "" if deployed else ", a key that no consortium vouches for"
        _say(f"{document.head().site}: signed with {document.fingerprint()}{known}")


def start(home: Path, health_port: int | None, *, as_json: bool) -> None:
    """Run the server until it is told to stop."""
    from fedgraft.common.base.logs import start_logs
    from fedgraft.server.operations.superlink_service import serve

    server = ServerHome(home)
    server.facts()
    start_logs(server.logs / "server.log", as_json=as_json)
    server.check_certificates()
    _warn(soon_to_end(server))
    serve(server, health_port, _say)


@dataclass(frozen=True)
class RunRequest:
    """What was asked of `fedgraft server run`."""

    study: Path | None
    out: Path | None
    resume: Path | None
    overrides: tuple[str, ...]
    track: tuple[str, ...] = ()
    agreement: Path | None = None
    by: ByWhom = NOBODY


def run(home: Path, request: RunRequest, wait: Wait) -> None:
    """Run a study on the running server, or continue one."""
    from fedgraft.server.operations.deploy import run_study
    from fedgraft.server.runs.run_folder import RunFolder
    from fedgraft.server.tracking.tracker import tracked, trackers
    from fedgraft.server.watch.progress import shown

    server = ServerHome(home)
    server.facts()
    to = trackers(request.track)
    if request.resume is not None and (request.study or request.out or request.overrides or request.agreement):
        raise InputError("--resume takes no study, --out, --set or --agreement.")
    if (folder := request.resume) is None:
        folder = _set_up(server, request)
    else:
        about = {"study": RunFolder(folder).study().digest, "run": str(folder)}
        ActionLog(server.path).record(request.by, "resume", about)
    with shown(folder, RunFolder(folder).study(), _out), tracked(folder, to, _say):
        run_study(server, folder, wait, _say)
    result = read_json(folder / "result.json")
    show_result(folder, result)
    demand_enough(folder, result)


def resolve(run: Path, out: Path, without: Sequence[str], others: Sequence[Path]) -> None:
    """Solve a finished run's heads again, without some of its sites or with those of other runs."""
    from fedgraft.server.rounds.resolve import resolve as carry_out

    found = carry_out(run, out, without, others)
    _say(f"{out}: heads from the sums of {', '.join(found.sites)}.")
    for task, ridge_penalty in found.ridge_penalties.items():
        _say(f"{task}: ridge penalty {ridge_penalty:g}, chosen from the sums.")
    if found.left:
        _say(f"Nothing in it is of {', '.join(found.left)}. {run} still holds their sums and the old heads: delete it.")
    _say("No site was asked anything: the model is not measured yet.")


def show_sites(home: Path, *, as_json: bool) -> None:
    """Who is there, and when each was last heard of."""
    from fedgraft.server.operations.overview import plain, sites

    rows = sites(ServerHome(home))
    if as_json:
        _json(plain(rows))
        return
    _show_sites(rows)


def show_status(home: Path, *, as_json: bool) -> None:
    """The server, its sites and its runs."""
    from fedgraft.server.operations.overview import plain, resume_command, runs, sites

    server = ServerHome(home)
    until, warnings = expires(server.gate[0]), soon_to_end(server)
    if not as_json:
        _warn(warnings)
    there, rows = sites(server), runs(server)
    if as_json:
        _json(
            {"certificate_until": until.isoformat(), "warnings": warnings, "sites": plain(there), "runs": plain(rows)}
        )
        return
    online = sum(row.state == "online" for row in there)
    _say(f"{server.facts().consortium}: {online} of {len(there)} sites online; certificate until {until:%Y-%m-%d}")
    _show_sites(there, rows[0] if rows else None)
    table = Table("study", "state", "exchange", "stage", "round", "refusals")
    for row in rows:
        refusals = "; ".join(f"{site}: {_counted(codes)}" for site, codes in row.refusals.items())
        done = f"{row.exchange} of {row.exchanges}"
        table.add_row(row.study, row.status, done, row.stage, str(row.round), refusals)
    _out.print(table)
    for row in rows:
        _say(f"{row.study} is in {row.folder}")
        if row.fault:
            _say(f"  {row.fault}")
        if row.status in ("stopped", "failed"):
            _say(f"  {row.status}; continue it with: {resume_command(server, row.folder)}")


def watch(home: Path, run: Path | None, port: int | None, address: str) -> None:
    """Show a run in the terminal, and on a web page if there is a port for it."""
    from fedgraft.server.watch import screen
    from fedgraft.server.watch.board import Board
    from fedgraft.server.watch.board import watch as keep_looking

    with Board(ServerHome(home), run) as board:
        if port is None:
            with screen.ScreenPicture(_out) if _out.is_terminal else screen.Lines(_out) as shown:
                keep_looking(board, shown.show, _POLL_S)
            return
        from fedgraft.common.base.logs import start_logs
        from fedgraft.server.watch.web import Page

        with Page(board, address, port) as page:
            if page.guard is not None:  # who came in, and who did not, is written down
                start_logs(ServerHome(home).logs / "page.log", as_json=False)
            _say(f"{page.url} shows the run, until Ctrl-C")
            if page.guard is None:
                _say(f"Everybody with an account on this machine can read it: nobody has a login in {home}.")
            page.serve_forever()


def stop(home: Path, *, server_too: bool, by: ByWhom = NOBODY) -> None:
    """Stop the running studies, which can be continued, and the server if asked."""
    from fedgraft.server.operations.control import RunControl
    from fedgraft.server.operations.overview import resume_command, running

    server, found = ServerHome(home), running(ServerHome(home))
    ActionLog(server.path).record(by, "stop", {"runs": sorted(found.values()), "server": server_too})
    for number, folder in found.items():
        with RunControl(server) as control:
            control.stop(number)
        _say(f"run {number} in {folder or 'an unknown folder'} is stopped")
        if folder:
            _say(f"  continue it with: {resume_command(server, folder)}")
    if not found:
        _say("no study runs")
    if server_too:
        os.kill(server.process(), signal.SIGTERM)
        _say("the server stops")


def show_logs(home: Path, part: str, lines: int) -> None:
    """The end of a log."""
    path = ServerHome(home).logs / f"{part}.log"
    if not path.is_file():
        raise InputError(f"{path}: there is no such log.", fix="Has the server been started?")
    with path.open(encoding="utf-8", errors="replace") as file:
        sys.stdout.writelines(deque(file, lines))


def _set_up(server: ServerHome, request: RunRequest) -> Path:
    from fedgraft.common.agreement.agreement import agreed, remarks
    from fedgraft.common.checks.explain import check_study
    from fedgraft.common.study.study import read_study
    from fedgraft.server.operations.deploy import prepare

    if request.study is None:
        raise InputError("Which study?", fix="Give a study file, or --resume with a run's folder.")
    study, _ = read_study(request.study, request.overrides)
    check_study(study, str(request.study))
    folder = request.out or Path("runs") / study.name
    agreement, sites = agreed(request.agreement, study) if request.agreement else None, set(server.admitted().values())
    ActionLog(server.path).record(request.by, "run", {"study": study.digest, "run": str(folder)})
    prepare(study, sites, folder, agreement)
    _say(f"study {study.name}, digest {study.digest}")
    for remark in remarks(agreement, study, sites) if agreement is not None else ():
        _say(remark)
    return folder


def _show_sites(rows: Sequence[SiteRow], run: RunRow | None = None) -> None:
    """The sites, and what each did in the newest run."""
    table = Table("site", "state", "last heard of", *(("took part last in", "refusals") if run else ()))
    for row in rows:
        cells = [row.name, row.state, ago(row.heard_s)]
        if run is not None:
            exchange = run.last.get(row.name)
            cells += [f"exchange {exchange}" if exchange else "-", _counted(run.refusals.get(row.name, {})) or "-"]
        table.add_row(*cells)
    _out.print(table)


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        _say(f"Warning: {line}")


def _counted(codes: Mapping[str, int]) -> str:
    return ", ".join(f"{code} x{count}" for code, count in codes.items())


def _json(content: Any) -> None:
    sys.stdout.write(json.dumps(content) + "\n")


def _say(text: str) -> None:
    _out.print(text, markup=False)
