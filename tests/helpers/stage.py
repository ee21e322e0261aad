"""A real server with a run of its own kind, and two sites that are let in and played by hand: `thief` and `victim`."""

from __future__ import annotations

import hashlib
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx
from flwr.app import Message
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab

from fedgraft.common.base.files import read_json
from fedgraft.common.identity.keys import new_node_key, public_pem
from fedgraft.server.operations.control import RunControl
from fedgraft.server.provisioning.home import Enrolled, ServerHome
from fedgraft.simulations.engines.run import Hospitals
from helpers.federation import Federation, until
from helpers.raw_site import RawSite

RUN = """
import json, os, time
import numpy as np
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from fedgraft.common.base.files import write_json
from fedgraft.common.protocol.instructions import Code
from fedgraft.server.bodies.bodies import Bodies
from fedgraft.server.fleet.intake import WalledIntake, send_beside
from fedgraft.server.fleet.transport import collect

app = ServerApp()

def said(reply):
    if isinstance(reply, Code):
        return reply.value
    return reply.content["words"]["json"] if reply.has_content() else "error"

@app.main()
def main(grid, context):
    folder, bodies = Path("{folder}"), Bodies.of_environment()
    send_beside(grid, bodies)
    push = grid.push_messages
    for number in range(1000):
        while not (folder / f"ask{{number}}.json").exists():
            time.sleep(0.05)
        asked = json.loads((folder / f"ask{{number}}.json").read_text())
        if not asked:
            return
        content = {{"words": ConfigRecord({{"json": "work"}})}}
        if asked["mb"]:
            content["model"] = ArrayRecord([np.frombuffer(os.urandom(asked["mb"] << 20), np.uint8)])
        messages = {{
            node: Message(
                RecordDict(content), dst_node_id=node, message_type="train.visit", ttl=600.0, group_id=str(number),
            )
            for node in asked["nodes"]
        }}
        def noting(batch):
            numbers = list(push(batch))
            write_json(folder / f"numbers{{number}}.json", numbers)
            return numbers
        grid.push_messages = noting
        found = {{}}
        for node, reply in collect(grid, messages, asked["deadline_s"], None, WalledIntake(grid, 1 << 24, bodies)):
            found[str(node)] = said(reply)
            write_json(folder / f"so_far{{number}}.json", found)
        write_json(folder / f"found{{number}}.json", found)
"""


@dataclass
class Stage:
    """The run, and the two sites; `round` begins one and gives what each site was asked."""

    folder: Path
    home: ServerHome
    thief: RawSite
    victim: RawSite
    numbers: Iterator[int]
    current: int = 0

    def round(self, deadline_s: float = 60.0, mb: int = 0) -> tuple[Message, Message]:
        """A round with a model of so many MiB."""
        self.current = next(self.numbers)
        asked = {"nodes": [self.thief.node, self.victim.node], "deadline_s": deadline_s, "mb": mb}
        (self.folder / f"ask{self.current}.tmp").write_text(json.dumps(asked))
        (self.folder / f"ask{self.current}.tmp").rename(self.folder / f"ask{self.current}.json")
        until((self.folder / f"numbers{self.current}.json").exists, 90, "the round's messages")
        return pulled(self.thief), pulled(self.victim)

    def found(self, part: str = "found") -> tuple[str | None, str | None]:
        """What the run got of the thief and of the victim."""
        path = self.folder / f"{part}{self.current}.json"
        until(path.exists, 90, "the round's end")
        found = read_json(path)
        return found.get(str(self.thief.node)), found.get(str(self.victim.node))


def pulled(site: RawSite) -> Message:
    ends = time.monotonic() + 30
    while (message := site.pull()) is None:
        assert time.monotonic() < ends, "no message came"
        time.sleep(0.1)
    return message


@contextmanager
def staged(folder: Path, hospitals: Hospitals) -> Iterator[Stage]:
    """The stage, in this folder, for as long as it is used."""
    federation = Federation(folder / "federation", hospitals, ("east", "north"))
    home, keys = ServerHome(federation.home), {name: new_node_key() for name in ("thief", "victim")}
    home.write_sites({name: Enrolled(node=public_pem(key).decode()) for name, key in keys.items()})
    trusted = ssl.create_default_context(cafile=str(home.authority))
    app = folder / "fedgraft"
    app.mkdir()
    (app / "stage.py").write_text(RUN.format(folder=folder))
    (app / "pyproject.toml").write_text(
        '[project]\nname = "fedgraft"\nversion = "0.1.0"\ndependencies = []\n[tool.flwr.app]\npublisher = "fedgraft"\n'
        'fab-include = ["**/*.py"]\n[tool.flwr.app.components]\nserverapp = "stage:app"\n'
        'clientapp = "fedgraft.client.runtime.app:app"\n[tool.flwr.app.config]\nrun = ""\n'
    )
    content = build_fab_from_disk(app)
    try:
        federation.start_server()
        with (
            httpx.Client(base_url=f"https://localhost:{federation.port}", verify=trusted, timeout=60) as client,
            RunControl(home) as control,
        ):
            nodes = {node.name: node.id for node in control.nodes()}
            sites = {name: RawSite(client, key, nodes[name]) for name, key in keys.items()}
            for site in sites.values():
                site.activate()
            fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
            control._client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto({})))
            yield Stage(folder, home, sites["thief"], sites["victim"], count())
    finally:
        federation.end()
