"""The ray engine: the same ServerApp and ClientApp through `flwr run`, on a SuperLink of the run's own.

The bundle that Flower ships is a manifest without Python: both sides run the installed code. The SuperLink starts in
an empty folder, since Flower resolves code from there first, with its own ports and FLWR_HOME, and ends with the run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import read_json
from fedgraft.common.plugins.loading import environment_for
from fedgraft.server.operations.bundle import manifest
from fedgraft.simulations.engines.child_path import SAFE_PATH

_POLL_S = 2.0
_START_S = 60.0
_PATIENCE = "RAY_raylet_start_wait_time_s"
"""Ray gives its own start half a minute, which is too little where others are at work."""


def run_with_ray(run: Path, size: tuple[int, int], plugins: tuple[str, ...], *, synthetic: bool) -> None:
    """Run the study in the folder `run` through Flower's simulation engine; RunError if it does not complete.

    `size` are the sites at work at a time, and torch's threads for each; `plugins` what their processes load before.
    """
    workers, threads = size
    if find_spec("ray") is None:
        raise InputError("The ray engine is not installed.", fix="Install fedgraft[ray], or use --engine pool.")
    sites = len(read_json(run / "sites" / "index.json"))
    folder = Path(tempfile.mkdtemp(prefix="fedgraft-ray-"))
    try:
        port = _free_port()
        environment = _environment(folder, port, threads) | environment_for(plugins)
        app = _app(folder)
        with _superlink(folder, port, environment):
            config = f'run="{run}" synthetic={str(synthetic).lower()}'
            # Ray hands out shares of the machine's cores; so many of them make `workers` sites run at a time.
            share = max(1, (os.cpu_count() or 1) // workers)
            gpu = 0.99 / workers if torch.cuda.is_available() else 0.0
            federation = f"num-supernodes={sites} client-resources-num-cpus={share} client-resources-num-gpus={gpu:.3f}"
            call = ["run", str(app), "local", "--run-config", config, "--federation-config", federation]
            started = _flwr([*call, "--format", "json"], environment, folder)
            _wait(str(started["run-id"]), environment, folder, run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _app(folder: Path) -> Path:
    """The bundle's folder: a manifest, and one line of YAML since a bundle may not be empty."""
    app = folder / "fedgraft"
    app.mkdir()
    (app / "pyproject.toml").write_text(manifest("ray"), encoding="utf-8")
    (app / "manifest.yaml").write_text("code: installed\n", encoding="utf-8")
    return app


def _environment(folder: Path, port: int, threads: int) -> dict[str, str]:
    home = folder / "flower"
    home.mkdir()
    connection = f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection, encoding="utf-8")
    programs = str(Path(sys.executable).parent)
    return (
        {_PATIENCE: "300"}
        | os.environ
        | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_ADDRESS": "local",  # else Ray joins a cluster that somebody has started here, without a word
            "RAY_USAGE_STATS_ENABLED": "0",
            SAFE_PATH: "1",
            "OMP_NUM_THREADS": str(threads),
            "NO_PROXY": "127.0.0.1,localhost",
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        }
    )


@contextmanager
def _superlink(folder: Path, port: int, environment: dict[str, str]) -> Iterator[None]:
    """A SuperLink on loopback as a child of this process."""
    empty = folder / "empty"
    empty.mkdir()
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=empty, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _until_listening(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    ends = time.monotonic() + _START_S
    while time.monotonic() < ends and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RunError("Flower's SuperLink did not start.", fix="Try --engine pool.")


def _wait(number: str, environment: dict[str, str], folder: Path, run: Path) -> None:
    """Wait for the run's end. Its exit code says nothing, so its status is asked for."""
    while True:
        found = _flwr(["ls", "local", "--run-id", number, "--format", "json"], environment, folder)
        status = str(found["runs"][0]["status"])
        if status.startswith("finished"):
            break
        time.sleep(_POLL_S)
    if status != "finished:completed":
        log = run / "flower.log"
        shutil.copyfile(folder / "superlink.log", log)
        raise RunError(f"Flower ended the run as {status}.", fix=f"See {log}.")


def _flwr(arguments: list[str], environment: dict[str, str], folder: Path) -> dict[str, list[dict[str, str]]]:
    command = ["flwr", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise RunError(f"flwr {arguments[0]} gave no answer: {(done.stdout + done.stderr)[-500:]}") from None
    if not answer.get("success", True):
        raise RunError(f"flwr {arguments[0]} failed: {answer.get('error-message', answer)}")
    if not isinstance(answer, dict):
        raise RunError(f"flwr {arguments[0]} gave an unexpected answer.")
    return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
