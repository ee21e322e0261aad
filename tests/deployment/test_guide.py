"""docs/deploy.md is followed to the letter: its very commands, from provisioning to revocation, typed by three roles.

So is docs/how_to/envelope_to_passport.md, the short way through it that ends with signed evidence, by the same people.

What is put in place of the guide's examples: the host and port, the paths of the data, and the browser's port.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from fedgraft.server.provisioning.actions import ActionLog
from fedgraft.simulations.engines.run import OPEN
from helpers.federation import ROOT, SLOW, command, end_with_parent, until
from helpers.ports import free_port
from helpers.site_home import STUDY

pytestmark = pytest.mark.deployment
GUIDE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```yaml\n# consortium\.yaml\n(.*?)```", GUIDE, re.DOTALL)[0]
PROVISION, START, JOIN, ENROL, PIN, RUN, LATER = (
    block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
)
ENVELOPE = [
    block.strip().splitlines()
    for block in re.findall(
        r"```sh\n(.*?)```",
        (ROOT / "docs" / "how_to" / "envelope_to_passport.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
]
SIGN, COLLECT = ENVELOPE[-2:]
Process = subprocess.Popen[str]


class Person:
    """Somebody with a folder and a fedgraft of their own, who types lines of the guide."""

    def __init__(self, folder: Path, replaced: dict[str, str]) -> None:
        self.folder, self._replaced, self._started = folder, replaced, 0
        self._processes: list[Process] = []
        self.typed: list[str] = []
        """All lines as the guide has them, in their order."""
        folder.mkdir()

    def ends(self) -> None:
        """End whatever was typed and still runs, and wait for it."""
        running = [process for process in self._processes if process.poll() is None]
        for process in reversed(running):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in running:
            try:
                process.wait(60 * SLOW)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def types(self, line: str, answer: str = "") -> str:
        process = self._open(line, subprocess.PIPE)
        words, _ = process.communicate(answer, timeout=300 * SLOW)
        assert process.returncode == 0, f"{line}: {words}"
        return words

    def starts(self, line: str) -> Process:
        """Type something that goes on; its words are in the file `NUMBER.out`."""
        self._started += 1
        with (self.folder / f"{self._started}.out").open("w") as log:
            return self._open(line, log)

    def heard(self, number: int) -> str:
        return (self.folder / f"{number}.out").read_text()

    def _open(self, line: str, output: object) -> Process:
        self.typed.append(line)
        for old, new in self._replaced.items():
            line = line.replace(old, new)
        words = shlex.split(line)
        assert words.pop(0) == "fedgraft"
        environment = os.environ | {
            "FEDGRAFT_HOME": str(self.folder / "home"),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "COLUMNS": "200",
        }
        process = subprocess.Popen(
            command(words),
            cwd=self.folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=output,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - it asks the kernel one thing, and Python nothing
            start_new_session=True,  # no terminal, so that the code is asked of the standard input
        )
        self._processes.append(process)
        return process


@pytest.fixture
def people(phantom_site: Path, tmp_path: Path) -> Iterator[dict[str, Person]]:
    data = {"/data/images": str(phantom_site / "dicom"), "/data/labels.csv": str(phantom_site / "patients.csv")}
    made = {
        name: Person(tmp_path / name, data | {"8080": str(free_port())}) for name in ("coordinator", "north", "south")
    }
    example = yaml.safe_load(EXAMPLE)
    example["server"] |= {"host": "localhost", "port": free_port(), "listen": "127.0.0.1", "inner_port": free_port()}
    (made["coordinator"].folder / "consortium.yaml").write_text(yaml.safe_dump(example))
    study = yaml.safe_dump(STUDY | {"method": {**STUDY["method"], "rounds": 6}})
    for person in made.values():
        (person.folder / "study.yaml").write_text(study)
        (person.folder / "policy.yaml").write_text(yaml.safe_dump(OPEN.model_dump(mode="json")))
    with ExitStack() as ends:
        for person in made.values():  # the coordinator's server ends last
            ends.callback(person.ends)
        yield made


def test_the_guide(people: dict[str, Person]):
    coordinator, north, south = people.values()
    kits = coordinator.folder / "kits"
    for line in PROVISION:
        coordinator.types(line)
    promised = set(re.findall(r"\| `(kits/[^`]+)` \|", GUIDE))
    assert promised == {str(path.relative_to(kits.parent)) + "/" * path.is_dir() for path in kits.glob("*")} & promised
    (line,) = START
    coordinator.starts(line)
    until(lambda: "listens" in coordinator.heard(1), 120, "the server")

    assert len(JOIN) == 3, "three commands from a kit to a site that takes part"
    for name, person in (("north", north), ("south", south)):
        shutil.copy(kits / f"{name}.zip", person.folder)
        person.types(JOIN[0].replace("north", name), (kits / f"{name}.code").read_text())
        shutil.copy(person.folder / "home" / "site" / f"{name}.enrolment.json", coordinator.folder)
    for line in ENROL:
        coordinator.types(line)
    sites, fingerprints = [], []
    for person, other, friend in ((north, "south", south), (south, "north", north)):
        shutil.copy(kits / "roster.json", person.folder)
        told = _fingerprint(friend)
        fingerprints.append(told)
        heard = [person.types(line.replace("south", other).replace("FINGERPRINT", told)) for line in PIN]
        assert f"Not pinned, so that it masks in no group with them: {other}" in heard[0]
        assert "Pinned, so that this site masks with them: north, south" in heard[1]
        person.types("fedgraft site check --part connection")
        person.types("fedgraft site review study.yaml")
        person.types(JOIN[1])
        sites.append(person.starts(JOIN[2]))

    _study(coordinator, sites[1])
    result = json.loads((coordinator.folder / "runs" / "trial" / "result.json").read_text())
    assert set(result["sites"]) == {"north", "south"}
    for name in ("result.json", "model.safetensors", "report.html"):
        assert (coordinator.folder / "runs" / "trial" / name).is_file()

    _evidence(coordinator, {"north": north, "south": south}, fingerprints)
    for person in (coordinator, north):
        mine = [line for block in ENVELOPE for line in block if line in person.typed]
        places = [person.typed.index(line) for line in mine]
        assert places == sorted(places), mine
    assert [line for block in ENVELOPE for line in block if line not in coordinator.typed + north.typed] == []

    _later(people, kits, sites[0])
    did = {folder: ActionLog(kits / folder).entries() for folder in ("server", "authority")}
    assert [line.action for line in did["server"]] == ["run", "stop", "resume"]
    assert did["server"][1].about == {"runs": [str(coordinator.folder / "runs" / "trial")], "server": False}
    assert [line.action for line in did["authority"]] == ["enrol"] + [
        word for line in LATER if (word := line.split()[2]) in ("provision", "enrol", "revoke", "renew")
    ]


def _evidence(coordinator: Person, sites: dict[str, Person], fingerprints: list[str]) -> None:
    """The end of the way from the envelope: each hospital attacks and signs, and the coordinator collects."""
    run = coordinator.folder / "runs" / "trial"
    for name, person in sites.items():
        shutil.copytree(run, person.folder / "runs" / "trial")
        for line in SIGN:
            person.types(line.replace("north", name))
        shutil.copy(person.folder / f"{name}.json", coordinator.folder)
    heard = [coordinator.types(line) for line in COLLECT]
    assert all(told in heard[1] for told in fingerprints), heard[1]
    dossier = (run / "dossier" / "dossier.md").read_text(encoding="utf-8")
    assert all(name in dossier for name in sites)


def _study(coordinator: Person, site: Process) -> None:
    """The commands of section 4: the study is watched, looked at, stopped and continued.

    A site halts while all that is typed: else a study of so few rounds could be over before it is stopped.
    """
    events = coordinator.folder / "runs" / "trial" / "events.jsonl"
    for line in RUN:
        if line.startswith("fedgraft server run study.yaml"):
            running = coordinator.starts(line)
            until(lambda: events.exists() and '"done"' in events.read_text(), 240, "the first round")
            site.send_signal(signal.SIGSTOP)
        elif "--web" in line:
            page = coordinator.starts(line)
            number = coordinator._started
            until(lambda n=number: "http://" in coordinator.heard(n), 60, "the page")
            address = re.findall(r"http://\S+", coordinator.heard(number))[0]
            with urllib.request.urlopen(f"{address}state", timeout=20) as answer:
                assert json.load(answer)["run"]["study"] == STUDY["name"]
            page.terminate()
            page.wait(20 * SLOW)
        elif " watch " in line:
            coordinator.starts(line)
        else:
            coordinator.types(line)
        if " stop " in line:
            assert running.wait(60 * SLOW) == 1
            site.send_signal(signal.SIGCONT)


def _later(people: dict[str, Person], kits: Path, site: Process) -> None:
    """The commands of section 6, by those who type them; at the end a site that was renewed is back."""
    coordinator, north, south = people.values()
    for line in LATER:
        if " rejoin " in line:
            shutil.copy(kits / "north.zip", north.folder)
            north.types(line, (kits / "north.code").read_text())
            shutil.copy(north.folder / "home" / "site" / "north.enrolment.json", coordinator.folder)
        else:
            coordinator.types(line)
        if " revoke " in line:
            until(lambda: site.poll() is not None, 90, "the revoked site to be shut out")
            assert site.returncode == 1
            until(lambda: _states(coordinator)["north"] == "revoked", 30, "the revocation")
    shutil.copy(kits / "roster.json", south.folder)
    south.types(f"fedgraft site roster roster.json --accept north={_fingerprint(north)}")
    north.starts(JOIN[2])
    until(lambda: _states(coordinator)["north"] == "online", 120, "the renewed site")


def _fingerprint(person: Person) -> str:
    """What somebody reads out on the telephone."""
    return re.findall(
        r"this site's fingerprint: ((?:[0-9a-f]{4}-){7}[0-9a-f]{4})", person.types("fedgraft site roster")
    )[0]


def _states(coordinator: Person) -> dict[str, str]:
    rows = json.loads(coordinator.types("fedgraft server sites --home kits/server --json"))
    return {row["name"]: row["state"] for row in rows}
