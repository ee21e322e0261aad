"""A board's view as figures for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from fedgraft.common.base.exposition import Figure, exposition
from fedgraft.server.watch.board import View
from fedgraft.server.watch.snapshot import Snapshot, State


def exposed(view: View) -> tuple[str, bytes]:
    """Content type and text."""
    return exposition([*_server(view), *(_run(view.run) if view.run else ())])


def _server(view: View) -> Iterator[Figure]:
    if view.answers is not None:
        yield Figure("server_answers", "Whether the server answers: 1 or 0.").add(view.answers)
    yield Figure("run_readable", "Whether a run is seen and can be read: 1 or 0.").add(view.run is not None)


def _run(run: Snapshot) -> Iterator[Figure]:
    study = {"study": run.study}
    state = Figure("run_state", "1 for the state that the run is in, 0 for the others.")
    for one in get_args(State):
        state.add(one == run.state, state=one, **study)
    yield state
    yield Figure("run_exchanges_done", "Exchanges that are done.").add(len(run.history), **study)
    yield Figure("run_exchanges", "Exchanges that the study has.").add(run.exchanges, **study)
    yield Figure("run_idle_seconds", "Seconds since anything happened in the run.").add(run.idle_s, **study)
    moved = Figure("run_bytes_total", "Bytes of messages since the run began.", "counter")
    yield moved.add(run.bytes_up, direction="up", **study).add(run.bytes_down, direction="down", **study)
    yield from _sites(run)
    means = Figure("run_metric", "The newest mean over the sites, by task and metric.")
    newest = next((one.metrics for one in reversed(run.history) if one.metrics), {})
    for task, values in newest.items():
        for metric, value in values.items():
            means.add(value, task=task, metric=metric, **study)
    yield means


def _sites(run: Snapshot) -> Iterator[Figure]:
    contacts = Figure("sites", "Sites of the run by whether they are heard of.")
    for contact, count in sorted(Counter(site.contact for site in run.sites).items()):
        contacts.add(count, contact=contact)
    heard = Figure("site_heard_seconds", "Seconds since a site was last heard of.")
    refused = Figure("site_refusals_total", "Refusals of a site by their code.", "counter")
    exchange = Figure("site_exchange", "The last exchange that a site took part in.")
    for site in run.sites:
        heard.add(site.heard_s, site=site.name)
        exchange.add(site.exchange, site=site.name)
        for code, count in sorted(site.refusals.items()):
            refused.add(count, site=site.name, code=code)
    yield from (contacts, heard, exchange, refused)
