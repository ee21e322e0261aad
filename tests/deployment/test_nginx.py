"""The nginx configuration of deploy/ passes what the gate passes, and nothing else."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import httpx
import pytest

from helpers.federation import ROOT, Federation, same_weights, until
from helpers.ports import free_port
from helpers.simulated import simulate

pytestmark = pytest.mark.deployment
SITES = ("east", "north", "south")
METHOD = {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003}}
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@pytest.fixture(scope="module")
def federation(found, make_study) -> Federation:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    behind, inner = free_port(), free_port()
    made = found(make_study(method=METHOD), running=(), listen_port=behind, inner_port=inner)
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for old, new in (
        ("/srv/fedgraft", str(made.home)),
        ("HOST", "localhost"),
        ("listen 8443 ssl", f"listen 127.0.0.1:{made.port} ssl"),
        ("127.0.0.1:8444", f"127.0.0.1:{behind}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (made.home / "nginx.conf").write_text(text)
    # Its workers leave root's account, and then could not write to root's folders.
    user = "user root;" if os.getuid() == 0 else ""
    command = [NGINX, "-e", str(made.home / "logs" / "nginx.log"), "-c", str(made.home / "nginx.conf")]
    made.spawn("nginx", [*command, "-g", f"daemon off; {user}"])
    until((made.home / "nginx.pid").exists, 20, "nginx")
    made.admit(make_study(method=METHOD), *SITES)
    for name in SITES:
        made.start_site(name)
    return made


def test_a_study_goes_through(federation, make_study, three, tmp_path: Path):
    study = make_study(method=METHOD)
    federation.run(study)
    assert same_weights(federation.root / "run", simulate(study, three, tmp_path / "reference"))


def test_nothing_else_does(federation):
    trusted = ssl.create_default_context(cafile=str(federation.home / "ca.crt"))
    with httpx.Client(base_url=f"https://localhost:{federation.port}", verify=trusted, timeout=30) as outside:
        assert outside.get("/health").status_code == 200
        closed = ("/", "/docs", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/fleet/register-node")
        for path in (*closed, "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs"):
            assert outside.post(path).status_code == 404, path
        assert outside.post("/v1/fleet/pull-messages?x=1").status_code == 404
        assert outside.get("/v1/fleet/pull-messages").status_code == 400
        assert outside.post("/v1/fleet/pull-messages").status_code == 401, "the gate behind asks for a signature"
        assert outside.post("/v1/fleet/pull-messages", content=bytes(9 << 20)).status_code == 413
