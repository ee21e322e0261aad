"""Preflight: is the machine fit? Versions, GPU, disk, memory, clock, and private files that are private."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import InvalidRequirement, Requirement

from fedgraft.client.enrolment.config import SITE_FILE, SiteConfig
from fedgraft.client.governance.records import SETTLE, Records
from fedgraft.client.preflight.report import Findings, counted
from fedgraft.client.runtime.sessions import exchanges_of
from fedgraft.common.base.disk import listed
from fedgraft.common.base.environment import code_digest, environment, memory_bytes
from fedgraft.common.base.files import make_folder

_GB = 1e9
_DISK_GB = 2.0
"""Room for logs, states and replies, beside the decoded cohort."""
_MEMORY_GB = 2.0
"""torch, a small model and a batch; what a study needs in truth is measured by its training step."""
_DAY_S = 86400.0
_MODULES = ("torchvision", "opacus", "pydicom", "openjpeg", "libjpeg", "rle")
"""What may be installed and still not import, above all torchvision with another torch, and decoders."""


def check_environment(config: SiteConfig, home: Path, cohort_bytes: int) -> Findings:
    """Look at the machine; `cohort_bytes` is what the decoded cohort will take on disk."""
    found = Findings()
    _versions(found)
    _gpu(found, config)
    _disk(found, config, cohort_bytes)
    _private(found, config, home)
    _records(found, config, home)
    _memory(found)
    _cores(found, config)
    _clock(found)
    return found


def _versions(found: Findings) -> None:
    facts = environment(0, "none")
    wrong, broken = _unmet(), []
    for name in _MODULES:
        try:
            import_module(name)
        except Exception as error:  # a package that does not fit the others raises whatever it meets
            broken.append(name)
            found.private.append(f"{name}: {type(error).__name__}: {error}")
    figures = {
        "python": facts["python"],
        "platform": facts["platform"],
        "packages": facts["packages"],
        "code_digest": code_digest(),
    }
    if wrong or broken:
        found.fails(
            "versions",
            f"missing or of another version: {', '.join(wrong) or 'none'}; cannot be imported: "
            f"{', '.join(broken) or 'none'}",
            "Install fedgraft anew in an environment of its own, torch and torchvision from the same place.",
            **figures,
        )
        return
    packages = facts["packages"]
    found.fine("versions", f"Python {facts['python']}, torch {packages['torch']}, flwr {packages['flwr']}", **figures)


def _unmet() -> list[str]:
    """Names of required packages that are absent or of a version that was not asked for."""
    try:
        lines = requires("fedgraft") or []
    except PackageNotFoundError:
        return ["fedgraft"]
    return sorted(name for line in lines if (name := _unmet_one(line)))


def _unmet_one(line: str) -> str:
    try:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            return ""
        return "" if wanted.specifier.contains(version(wanted.name), prereleases=True) else wanted.name
    except PackageNotFoundError:
        return wanted.name
    except InvalidRequirement:
        return "fedgraft"


def _gpu(found: Findings, config: SiteConfig) -> None:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name(0)
        used = " (not used: site.yaml says device: cpu)" if config.device == "cpu" else ""
        found.fine(
            "gpu",
            f"{name}, {free / _GB:.1f} of {total / _GB:.1f} GB free{used}",
            name=name,
            free_gb=round(free / _GB, 1),
        )
    elif config.device.startswith("cuda"):
        found.fails(
            "gpu",
            "site.yaml asks for a GPU, but torch finds none",
            "Check the driver with nvidia-smi and pass the GPU to the container, or set device: auto.",
        )
    else:
        found.fine("gpu", "none; training runs on the CPU")


def _disk(found: Findings, config: SiteConfig, cohort_bytes: int) -> None:
    for name, folder, need in (
        ("state", config.state, _DISK_GB),
        ("cache", config.cache, _DISK_GB + cohort_bytes / _GB),
    ):
        free = shutil.disk_usage(_existing(folder)).free / _GB
        figures = {"free_gb": round(free, 1), "needed_gb": round(need, 1)}
        if not _writable(folder):
            found.private.append(f"{folder}: cannot be written")
            found.fails(
                f"disk_{name}",
                f"the folder `{name}` cannot be written",
                f"Give the account that runs fedgraft the folder, or name another as `{name}` in site.yaml.",
                **figures,
            )
        elif free < need:
            found.fails(
                f"disk_{name}",
                f"{free:.1f} GB free for `{name}`, {need:.1f} GB needed",
                f"Make room, or name a folder on a larger disk as `{name}` in site.yaml.",
                **figures,
            )
        else:
            found.fine(f"disk_{name}", f"{free:.1f} GB free for `{name}`, {need:.1f} GB needed", **figures)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _writable(folder: Path) -> bool:
    """Whether a file can really be made there; permissions alone do not tell, on read-only mounts for one."""
    probe = folder / f".fedgraft-{os.urandom(4).hex()}"
    try:
        make_folder(folder)
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError:
        return False
    return True


def _private(found: Findings, config: SiteConfig, home: Path) -> None:
    """Keys and patients' splits are for one account; site.yaml may be read, but not written, by others."""
    closed = not config.state.is_dir() or not config.state.stat().st_mode & 0o077
    open_ = [] if closed else [path for path in listed(config.state, "**/*") if path.is_file() and _open(path)]
    if (home / SITE_FILE).is_file() and (home / SITE_FILE).stat().st_mode & 0o022:
        open_.append(home / SITE_FILE)
    if not open_:
        found.fine("private", "the site's own files are closed to other accounts")
        return
    found.private += [f"{path}: open to other accounts" for path in open_]
    found.fails(
        "private",
        f"{counted(len(open_), 'file')} of the site can be read or changed by other accounts of this machine",
        "Close them: chmod -R go-rwx on the site's folder.",
        files=len(open_),
    )


def _records(found: Findings, config: SiteConfig, home: Path) -> None:
    """What a restored backup, or a lost file, makes of the site's records."""
    if wrong := Records(config, home, exchanges_of).contradictions():
        found.private += wrong
        found.fails("records", f"{counted(len(wrong), 'thing')} in the site's records does not agree", SETTLE)
    else:
        found.fine("records", "ledger, egress log, masks, progress and kept answers agree")


def _open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & 0o077)
    except FileNotFoundError:  # a site at work replaces its files
        return False


def _memory(found: Findings) -> None:
    total, free = memory_bytes()
    figures = {"total_gb": round(total / _GB, 1), "free_gb": round(free / _GB, 1)}
    description = f"{free / _GB:.1f} of {total / _GB:.1f} GB free"
    if free < _MEMORY_GB * _GB:
        fix = "Stop other programs, or give the machine or container more memory."
        found.fails("memory", f"{description}, {_MEMORY_GB:g} GB needed", fix, **figures)
    else:
        found.fine("memory", description, **figures)


def _cores(found: Findings, config: SiteConfig) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    description = f"{counted(cores, 'core')} ({platform.machine()})"
    if config.threads > cores:
        found.note(
            "cores", f"{description}, but site.yaml asks for {config.threads} threads", "Lower threads.", cores=cores
        )
    else:
        found.fine("cores", description, cores=cores)


def _clock(found: Findings) -> None:
    """A clock that was reset shows without a network; a wrong one shows against the server's, see `connection`."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    if time.time() < newest - _DAY_S:
        fix = "Set the clock, best by NTP: the server refuses signatures that are minutes off."
        found.fails("clock", "the clock is earlier than this software", fix)
    else:
        found.fine("clock", "later than this software; compared with the server's under connection")
