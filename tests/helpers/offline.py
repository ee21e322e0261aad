"""A shell without a network: a namespace that has no route, where the system gives one; else proxies that refuse."""

from __future__ import annotations

import os
import subprocess

_NOWHERE = "http://127.0.0.1:9"
_UNSHARE = ["unshare", "--map-root-user", "--net"]


def offline(words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program as somebody with a bare environment and no network would."""
    has = subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "FEDGRAFT_HOME") if name in os.environ}
    bare |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), _NOWHERE)
    command = [*(_UNSHARE if has else []), *words]
    return subprocess.run(command, env=bare | more, capture_output=True, text=True, check=False)
