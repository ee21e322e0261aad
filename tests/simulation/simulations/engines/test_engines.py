"""What a run gives does not depend on how it is carried out, on interruptions, or on who fails in other rounds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedgraft.common.base.errors import InputError, QuorumError, ResumeError
from fedgraft.common.base.files import load_tensors, read_json
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.faults import Fault
from fedgraft.simulations.engines.run import Engine, Hospitals, prepare
from helpers.simulated import resume, simulate


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_tensors(run / "model.safetensors")


def identical(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return set(left) == set(right) and all((left[key] == right[key]).all() for key in left)


def history(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


GRAFT = {"name": "graft", "rounds": 2, "local": {"epochs": 1, "batch_size": 8, "lr": 0.003, "augment": {}}}


Whole = Callable[[Study], Path]


@pytest.fixture(scope="module")
def whole(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of a study that nothing happens to, carried out once for all tests; not to be changed."""
    done: dict[str, Path] = {}

    def run(study: Study) -> Path:
        if study.digest not in done:
            done[study.digest] = simulate(study, hospitals, tmp_path_factory.mktemp("whole") / "run")
        return done[study.digest]

    return run


SHORT = {"name": "fedavg", "rounds": 2, "local": {"epochs": 1, "batch_size": 8}}


@pytest.fixture
def reference(whole: Whole, make_study) -> Path:
    return whole(make_study(method=GRAFT))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_pool_of_any_size_gives_identical_weights(reference, hospitals, make_study, tmp_path, workers: int):
    run = simulate(make_study(method=GRAFT), hospitals, tmp_path / "pool", Engine(name="pool", workers=workers))
    assert identical(weights(run), weights(reference))
    ours, theirs = history(run), history(reference)
    assert [row["metrics"] for row in ours] == [row["metrics"] for row in theirs]
    assert [row["bytes_up"] for row in ours] == [row["bytes_up"] for row in theirs]


def test_another_seed_gives_other_weights(reference, hospitals, make_study, tmp_path):
    other = simulate(make_study(method=GRAFT, seed=4), hospitals, tmp_path / "other")
    assert not identical(weights(other), weights(reference))


def test_a_second_run_gives_identical_weights(reference, hospitals, make_study, tmp_path):
    assert identical(weights(simulate(make_study(method=GRAFT), hospitals, tmp_path / "again")), weights(reference))


class Stopped(Exception):
    """A run that is stopped from outside."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stop"), [*(("fedbn", stop) for stop in range(5)), ("fedadam", 1), ("scaffold", 1), ("l2sp", 1)]
)
def test_a_run_stopped_anywhere_resumes_to_identical_weights(
    hospitals, make_study, whole, tmp_path, monkeypatch, *, method: str, stop: int
):
    """FedBN keeps entries at the sites, FedAdam moments at the coordinator, SCAFFOLD both; L2-SP sends the start."""
    study = make_study(method={**GRAFT, "name": method})
    stopped_and_resumed(study, hospitals, whole(study), tmp_path, monkeypatch, stop)


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(5))
def test_a_run_with_a_stage_that_ends_early_resumes_to_identical_weights(
    hospitals, make_study, whole, tmp_path, monkeypatch, stop: int
):
    """Wherever it is stopped: while that stage waits for a better model, where it ends, and in the next one."""
    local = {"kind": "gradient", "steps": 2, "batch_size": 8, "lr": 0.003}
    first = {"name": "first", "local": local, "share": "all", "aggregate": {"kind": "mean"}, "rounds": 6}
    until = {"metric": "auroc", "least": 0.9, "patience": 2}  # which no model is ever better by
    study = make_study(plan=[first | {"early_stopping": until}, first | {"name": "then", "rounds": 2}])
    stopped_and_resumed(study, hospitals, whole(study), tmp_path, monkeypatch, stop)
    done = [row["stage"] for row in history(whole(study)) if row["stage"] in ("first", "then")]
    assert 2 <= done.count("first") < 6
    assert done.count("then") == 2


def stopped_and_resumed(study: Study, hospitals: Hospitals, whole: Path, tmp_path: Path, monkeypatch, stop: int):
    """A run that is stopped before its checkpoint `stop` + 1 and goes on ends as the whole one does."""
    from fedgraft.server.runs.run_folder import RunFolder

    save, seen = RunFolder.save_checkpoint, []

    def interrupted(self, exchange, *rest):
        seen.append(exchange)
        if len(seen) > stop:
            raise Stopped
        save(self, exchange, *rest)

    run = tmp_path / "cut"
    monkeypatch.setattr(RunFolder, "save_checkpoint", interrupted)
    try:
        simulate(study, hospitals, run)
    except Stopped:
        monkeypatch.setattr(RunFolder, "save_checkpoint", save)
        resume(run, Engine(name="pool"))
    assert identical(weights(run), weights(whole))
    timeless = [{k: v for k, v in row.items() if k not in ("seconds", "bytes_down")} for row in history(run)]
    assert timeless == [{k: v for k, v in row.items() if k not in ("seconds", "bytes_down")} for row in history(whole)]
    assert read_json(run / "result.json")["metrics"] == read_json(whole / "result.json")["metrics"]


def exchanges_done(run: Path) -> int:
    """How far a run has come, for somebody outside it; its checkpoint goes away when it ends."""
    try:
        return int(read_json(run / "checkpoint" / "state.json")["exchange"])
    except InputError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_a_killed_process_resumes_to_identical_weights(hospitals, make_study, whole, tmp_path, engine: str):
    study = make_study(method={**GRAFT, "name": "fedbn", "rounds": 30})
    run = tmp_path / "killed"
    prepare(study, hospitals, run)
    code = "import sys; from pathlib import Path; from fedgraft.simulations.engines.run import resume, Engine\n"
    code += "if __name__ == '__main__': resume(Path(sys.argv[1]), Engine(name=sys.argv[2]))"
    script = tmp_path / "go.py"
    script.write_text(code)
    for exchanges in (2, 4):
        process = subprocess.Popen([sys.executable, script, run, engine], start_new_session=True, env=os.environ)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and exchanges_done(run) < exchanges:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    resume(run, Engine(name=engine))
    assert identical(weights(run), weights(whole(study)))
    assert len(history(run)) == len(history(whole(study)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["*.safetensors", "state.json", "history.jsonl"])
def test_a_flipped_bit_in_what_a_run_goes_on_from_costs_a_round_and_changes_nothing(
    hospitals, make_study, whole, tmp_path, name
):
    """It gave other weights before, with exit code 0."""
    study = make_study(method="fedavg")
    run = simulate(study, hospitals, tmp_path / "run")
    path = run / name if name == "history.jsonl" else sorted((run / "checkpoint").glob(name))[-1]
    content = bytearray(path.read_bytes())
    last_round = content.rindex(b"\n", 0, content.rindex(b"\n", 0, -1)) if name == "history.jsonl" else -20
    content[last_round + 10] ^= 1
    path.write_bytes(content)
    resume(run)
    assert identical(weights(run), weights(whole(study)))
    assert [row["exchange"] for row in history(run)] == [row["exchange"] for row in history(whole(study))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "crash", "nan", "misshapen"])
def test_a_faulty_site_costs_its_own_round_only(hospitals, make_study, tmp_path, kind: str):
    faulty = Hospitals(hospitals.cohorts, {"north": Fault(kind=kind, rounds=(2,))})
    run = simulate(make_study(method="fedavg"), faulty, tmp_path / kind, Engine(name="inprocess"))
    rows = history(run)
    assert "north" not in rows[1]["sites_aggregated"]
    assert rows[1]["sites_aggregated"] == ["east", "south", "west"]
    assert all("north" in row["sites_aggregated"] for row in rows if row["exchange"] != 2)
    code = {"silent": "deadline", "crash": "unreachable", "nan": "not_finite", "misshapen": "wrong_shape"}[kind]
    assert rows[1]["missing"] == {"north": code}
    assert all(np.isfinite(array).all() for array in weights(run).values())
    result = read_json(run / "result.json")
    assert result["status"] == "incomplete"
    assert f"north, {code}" in result["headline"]


def test_leaving_a_site_out_by_fault_is_leaving_it_out_of_the_mean(hospitals, make_study, tmp_path):
    """A round without a site gives what the same round gives when the site was never asked."""
    study = make_study(method={"name": "fedavg", "rounds": 1, "local": {"epochs": 1, "batch_size": 8}})
    faulty = Hospitals(hospitals.cohorts, {"north": Fault(kind="nan", rounds=(1,))})
    three = Hospitals({name: spec for name, spec in hospitals.cohorts.items() if name != "north"})
    with_fault = simulate(study, faulty, tmp_path / "fault")
    without = simulate(study, three, tmp_path / "three")
    assert identical(weights(with_fault), weights(without))


@pytest.mark.slow
def test_too_few_sites_stop_the_run_and_it_resumes(hospitals, make_study, whole, tmp_path):
    study = make_study(method="fedavg", rounds={"quorum": 0.9})
    faulty = Hospitals(hospitals.cohorts, {"north": Fault(kind="silent", rounds=(2,))})
    with pytest.raises(QuorumError, match="3 of 4 sites; missing: north, deadline") as caught:
        simulate(study, faulty, tmp_path / "run")
    assert "--resume" in str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists()
    settings = tmp_path / "run" / "simulation.json"
    settings.write_text(json.dumps(read_json(settings) | {"faults": {}}))
    run = resume(tmp_path / "run")
    assert identical(weights(run), weights(whole(study)))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "pool"])
def test_a_site_that_hangs_costs_its_round_only(hospitals, make_study, tmp_path, engine: str):
    study = make_study(method="fedavg", rounds={"deadline_s": 15.0})
    run = tmp_path / "run"
    prepare(study, hospitals, run)
    code = f"""
import os, sys, time
from pathlib import Path
import fedgraft.client.runtime.site
visit = fedgraft.client.runtime.site.Site.visit
def slow(self, order):
    if self.name == "north" and order.exchange == 2:
        time.sleep(600)
    return visit(self, order)
fedgraft.client.runtime.site.Site.visit = slow
from fedgraft.simulations.engines.run import Engine, resume
if __name__ == "__main__":
    resume(Path(sys.argv[1]), Engine(name={engine!r}))
    os._exit(0)
"""
    script = tmp_path / "go.py"
    script.write_text(code)
    subprocess.run([sys.executable, script, run], check=True, timeout=200, start_new_session=True)
    rows = history(run)
    assert rows[1]["missing"] == {"north": "deadline"}
    assert "north" in rows[2]["sites_aggregated"]


DYING = """
import os, signal, sys
from pathlib import Path
import fedgraft.client.runtime.site as site
marks, how = Path(os.environ["MARKS"]), os.environ["HOW"]
if os.environ["HOW"] == "start" and __name__ == "__mp_main__":
    os.kill(os.getpid(), signal.SIGKILL)
visit = site.Site._seal
def dying(self, turn, *rest):
    mark = marks / f"{len(list(marks.iterdir()))}"
    if self.name == "north" and turn.exchange == 2 and (how != "once" or not list(marks.iterdir())):
        mark.write_text("")
        if how == "memory":
            raise MemoryError
        os.kill(os.getpid(), signal.SIGKILL)
    return visit(self, turn, *rest)
site.Site._seal = dying
if __name__ == "__main__":
    from fedgraft.cli import main
    sys.argv = ["fedgraft", "simulate", "--resume", sys.argv[1], "--engine", sys.argv[2]]
    main()
"""


@pytest.fixture
def dying(hospitals, make_study, tmp_path) -> Callable[..., tuple[Path, subprocess.CompletedProcess[str]]]:
    """A run in which the process that simulates north dies after its work of exchange 2, before it has answered."""

    def run(how: str, engine: str = "pool", **study: object) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path / "run"
        prepare(make_study(**study), hospitals, folder)
        (tmp_path / "marks").mkdir()
        (tmp_path / "go.py").write_text(DYING)
        words = [sys.executable, tmp_path / "go.py", folder, engine]
        environment = os.environ | {"MARKS": str(tmp_path / "marks"), "HOW": how}
        return folder, subprocess.run(words, capture_output=True, text=True, check=False, timeout=200, env=environment)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("study", [{"method": SHORT}, {"method": SHORT, "secure_aggregation": True}])
def test_a_worker_that_dies_is_no_ill_hospital(dying, whole, make_study, study):
    """Its visit is repeated by another, to the same bits."""
    run, done = dying("once", **study)
    assert done.returncode == 0, done.stderr
    assert "simulated north was killed (SIGKILL, as the system does when memory runs out)" in done.stderr
    assert "Another one repeats the visit" in done.stderr
    assert all(row["missing"] == {} for row in history(run))
    assert read_json(run / "result.json")["status"] == "completed"
    assert identical(weights(run), weights(whole(make_study(**study))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "engine"), [("always", "pool"), ("start", "pool"), ("memory", "pool"), ("memory", "inprocess")]
)
def test_a_visit_that_kills_every_worker_or_finds_no_memory_ends_the_run_with_the_reason(dying, how, engine):
    run, done = dying(how, engine, method=SHORT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "--resume" in done.stderr
    if how in ("always", "start"):
        who = "north" if how == "always" else r"\w+"
        assert re.search(f"that simulated {who} was killed .SIGKILL", done.stderr)
        assert "and so did the one before it" in done.stderr
    else:
        assert "memory is not enough to simulate north in exchange 2" in done.stderr
    assert not (run / "result.json").exists()


def test_a_folder_in_use_is_not_touched(hospitals, make_study, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        simulate(make_study(), hospitals, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(InputError, match="no simulated run"):
        resume(tmp_path)


def test_a_damaged_checkpoint_is_named(reference, tmp_path):
    run = shutil.copytree(reference, tmp_path / "run")
    for path in (run / "checkpoint").glob("*.safetensors"):
        path.write_bytes(b"garbage")
    with pytest.raises(ResumeError, match=r"checkpoint.*safetensors"):
        resume(run)


def test_a_linear_probe_moves_its_head_and_little_else(hospitals, make_study, tmp_path):
    run = simulate(make_study(method="linear_probe"), hospitals, tmp_path / "probe")
    first, *later = history(run)
    sites = len(hospitals.cohorts)
    assert first["bytes_down"] > sites * 1_000_000, "the backbone goes out once"
    for row in later:
        assert row["bytes_down"] / sites < 10_000
        assert row["bytes_up"] / sites < 10_000
