"""A hostile world: 200 requests at the gate while a study runs, and a bundle with code for the sites."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.fab import Fab

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.governance.approval import approve
from fedgraft.common.identity.keys import new_node_key
from fedgraft.common.study.study import Study
from fedgraft.server.operations.control import RunControl
from fedgraft.server.provisioning.home import ServerHome
from helpers.federation import SLOW, Federation, same_weights, until
from helpers.gated import signed
from helpers.simulated import simulate

pytestmark = pytest.mark.deployment
METHOD = {"name": "fedavg", "rounds": 3, "local": {"epochs": 8, "batch_size": 4, "lr": 0.003}}
PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def study(make_study) -> Study:
    return make_study(method=METHOD)


@pytest.fixture(scope="module")
def federation(stand, study) -> Federation:
    return stand(study)


@pytest.fixture
def outside(federation: Federation) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=str(federation.home / "ca.crt"))
    with httpx.Client(base_url=f"https://localhost:{federation.port}", verify=trusted, timeout=30) as client:
        yield client


def attacks(federation: Federation) -> dict[str, Callable[[httpx.Client], int]]:
    """Ten kinds of requests; each gives the status that it was answered with."""
    site, stranger = SiteHome(federation.site("east")).node_key(), new_node_key()
    once = signed(site)

    def raw(request: bytes) -> Callable[[httpx.Client], int]:
        def send(_: httpx.Client) -> int:
            trusted = ssl.create_default_context(cafile=str(federation.home / "ca.crt"))
            plain = socket.create_connection(("localhost", federation.port), timeout=10)
            with trusted.wrap_socket(plain, server_hostname="localhost") as line:
                line.sendall(request)
                answer = line.recv(4096)
            return int(answer.split()[1]) if answer else 0

        return send

    def post(path: str, **more: Any) -> Callable[[httpx.Client], int]:
        return lambda client: client.post(path, **more).status_code

    def oversized(client: httpx.Client) -> int:
        return client.post(PULL, content=bytes(9 << 20), headers=signed(site)).status_code

    head = f"POST {PULL} HTTP/1.1\r\nHost: localhost\r\n"
    smuggled = head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    smuggled += "POST /v1/control/start-run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    return {
        "control": post("/v1/control/start-run", content=b""),
        "runtime": post("/v1/runtime/acquire-task", content=b""),
        "detour": raw(b"POST /v1/fleet/../control/list-runs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
        "encoded": raw(b"POST /v1/fleet/%2e%2e/control/list-runs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
        "smuggled": raw(smuggled.encode()),
        "unsigned": post(PULL, content=PullMessagesRequest(node=Node(node_id=1)).SerializeToString()),
        "stranger": lambda client: client.post(PULL, content=b"", headers=signed(stranger)).status_code,
        "replayed": post(PULL, content=b"", headers=once),
        "stale": post(PULL, content=b"", headers=signed(site, datetime.now(UTC) - timedelta(minutes=6))),
        "oversized": oversized,
    }


def test_the_gate_answers_health_alone_besides_the_fleet(outside):
    """Comes before strangers at this address have asked too often, and would have to wait."""
    assert outside.get("/health").status_code == 200
    for path in ("/", "/docs", "/openapi.json", "/v1/fleet/register-node", "/v1/fleet/", "/metrics"):
        assert outside.get(path).status_code == 404
        assert outside.post(path).status_code == 404


def test_two_hundred_hostile_requests_reach_nothing_and_stop_nothing(federation, study, three, outside, tmp_path):
    earlier = len(federation.log("superlink"))
    process = federation.start_run(study, "hostile")
    federation.await_event("exchange", "hostile", exchange=1)
    answers: dict[str, Counter[int]] = {}
    for _ in range(20):
        for kind, attack in attacks(federation).items():
            try:
                status = attack(outside)
            except (httpx.TransportError, OSError):  # the gate hung up
                status = 0
            answers.setdefault(kind, Counter())[status] += 1
    assert sum(sum(counts.values()) for counts in answers.values()) == 200
    # The first of the replayed requests is the honest one.
    assert answers["replayed"].pop(200, 0) + answers["replayed"].pop(400, 0) <= 20
    for kind, counts in answers.items():
        assert not any(200 <= status < 300 for status in counts), (kind, counts)
    assert process.wait(200) == 0, federation.output("hostile")
    assert same_weights(federation.root / "hostile", simulate(study, three, tmp_path / "reference"))
    # Flower's own record of who asked for what: on loopback, Control was used by our commands alone.
    asked = [line for line in federation.log("superlink")[earlier:].splitlines() if "uvicorn.access" in line]
    assert asked, "Flower keeps a record"
    assert not any("/.." in line or "%2e" in line for line in asked)
    refused = [line for line in asked if "/v1/control/" in line and not line.endswith(" 200")]
    assert refused == []
    assert [line for line in asked if "acquire-task" in line and " 401" in line] == []


def test_old_tls_is_refused(federation):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(federation.home / "ca.crt")
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = version
        with socket.create_connection(("localhost", federation.port), timeout=10) as plain, pytest.raises(OSError):
            old.wrap_socket(plain, server_hostname="localhost")
    with (
        socket.create_connection(("localhost", federation.port), timeout=10) as plain,
        ssl.create_default_context(cafile=str(federation.home / "ca.crt")).wrap_socket(
            plain, server_hostname="localhost"
        ) as line,
    ):
        assert line.version() in ("TLSv1.2", "TLSv1.3")


def test_a_connection_that_says_nothing_is_closed(federation):
    trusted = ssl.create_default_context(cafile=str(federation.home / "ca.crt"))
    plain = socket.create_connection(("localhost", federation.port), timeout=60 * SLOW)
    with trusted.wrap_socket(plain, server_hostname="localhost") as line:
        line.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nX-Slow: ")
        assert line.recv(1) == b"", "else it waits in vain"


LIAR = """
import dataclasses, numpy as np
import fedgraft.client.runtime.site

real = fedgraft.client.runtime.site.Site.visit

def visit(self, order):
    answer = real(self, order)
    if not getattr(answer, "tensors", None):
        return answer
    key = next(key for key, array in answer.tensors.items() if array.dtype.kind == "f" and array.size > 9)
    array = answer.tensors[key]
    lies = {
        1: answer.tensors | {key: np.full_like(array, np.nan)},
        2: answer.tensors | {key: np.zeros((3, *array.shape), array.dtype)},
        3: answer.tensors | {"more": array},
        4: {k: a for k, a in answer.tensors.items() if k != key},
        5: answer.tensors | {key: order.tensors[key] + 100 * (1 + abs(array))},
        6: answer.tensors | {key: array.astype(np.float64)},
    }
    return dataclasses.replace(answer, tensors=lies[order.exchange])

fedgraft.client.runtime.site.Site.visit = visit
"""


def test_a_site_that_sends_nonsense_moves_nothing(federation, make_study, hospitals, tmp_path):
    """Every round another lie of a site that is known and let in; the others' model is as if it were not there."""
    study = make_study(method=METHOD | {"rounds": 6, "local": METHOD["local"] | {"epochs": 1}}, rounds={"min_sites": 2})
    for name in ("east", "north", "south"):
        approve(federation.site(name), study.digest)
    federation.processes["south"].terminate()
    federation.processes["south"].wait(30)
    (tmp_path / "lies").mkdir()
    (tmp_path / "lies" / "liar.py").write_text(LIAR)
    code = "import liar, sys; sys.argv = ['fedgraft', 'site', 'start', '--home', sys.argv[1]]; "
    code += "from fedgraft.cli import main; main()"
    liar = federation.spawn("south", [sys.executable, "-c", code, str(federation.site("south"))], tmp_path / "lies")
    federation.run(study, "lies")
    liar.terminate()
    liar.wait(30)
    federation.start_site("south")
    rows = federation.history("lies")
    codes = ["not_finite", "wrong_shape", "wrong_keys", "wrong_keys", "too_large", "wrong_shape"]
    assert [row["missing"].get("south") for row in rows] == [*codes, None]
    assert all(row["sites_aggregated"] == ["east", "north"] for row in rows[:6])
    others = replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in ("east", "north")})
    assert same_weights(federation.root / "lies", simulate(study, others, tmp_path / "reference"))


HOSTILE_SERVER = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    study = Path("{study}").read_text()
    answers, nodes = [], []
    while len(nodes) < 3:  # a busy machine may miss a site's sign of life for a moment
        time.sleep(1)
        nodes = list(grid.get_node_ids())
    for kind in ("query.hello", "train.visit", "train", "query.shell"):
        words = {{"json": json.dumps({{"protocol": 1, "study": study}})}}
        records = RecordDict({{"words": ConfigRecord(words)}})
        messages = [Message(records, dst_node_id=node, message_type=kind) for node in nodes]
        for reply in grid.send_and_receive(messages, timeout=120):
            answers.append(str(reply.content) if reply.has_content() else reply.error.reason)
    Path("{answers}").write_text(json.dumps(answers))
"""
HOSTILE_CLIENT = """
from pathlib import Path
Path("{marker}").write_text("the server's code ran at a site")
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query("hello")
def hello(message, context):
    Path("{marker}").write_text("the server's code ran at a site")
    raise SystemExit
"""


def hostile_bundle(folder: Path, marker: Path, answers: Path, study: Path) -> bytes:
    """A bundle whose ClientApp shadows the installed one, as a coordinator who was broken into might send it."""
    app = folder / "fedgraft"
    for package in ("client", "hostile"):
        (app / package).mkdir(parents=True)
        (app / package / "__init__.py").write_text("")
    (app / "client" / "app.py").write_text(HOSTILE_CLIENT.format(marker=marker))
    (app / "hostile" / "server.py").write_text(HOSTILE_SERVER.format(answers=answers, study=study))
    (app / "pyproject.toml").write_text(
        '[project]\nname = "fedgraft"\nversion = "0.1.0"\ndependencies = []\n[tool.flwr.app]\npublisher = "fedgraft"\n'
        'fab-include = ["**/*.py"]\n[tool.flwr.app.components]\nserverapp = "hostile.server:app"\n'
        'clientapp = "fedgraft.client.runtime.app:app"\n[tool.flwr.app.config]\nrun = ""\n'
    )
    return build_fab_from_disk(app)


def test_a_bundle_with_code_changes_nothing_at_a_site(federation, make_study, tmp_path):
    marker, answers, study = tmp_path / "marker", tmp_path / "answers.json", tmp_path / "study.json"
    study.write_bytes(make_study(seed=666).to_json())
    content = hostile_bundle(tmp_path, marker, answers, study)
    with RunControl(ServerHome(federation.home)) as control:
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        config = user_config_to_proto({})
        control._client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=config))
    until(answers.exists, 300, "the hostile run")
    assert not marker.exists()
    found = json.loads(answers.read_text())
    assert len(found) == 12, "every site answered every message"
    assert sum("not_approved" in answer for answer in found) == 3
    assert not any("Traceback" in answer or str(federation.root) in answer for answer in found)
    assert "get-fab" not in federation.log("superlink"), "no site ever asked for the bundle"
    for name in ("east", "north", "south"):
        assert federation.processes[name].poll() is None
