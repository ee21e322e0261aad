"""Two machines on one: network, mount and process namespaces of their own, joined by a cable.

All of it hangs on one process, and that on whoever started it. When it ends, the system ends every other process in
there, and the cable is gone.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_BOTH = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_ONE = "unshare --net --mount --uts --pid --fork --kill-child --mount-proc"
_ENTER = "nsenter -t {at} --net --mount --uts --pid=/proc/{at}/ns/pid_for_children"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
ADDRESSES = ("10.77.0.1", "10.77.0.2")

# Each of the two is held by a process that sleeps: it is there once the namespaces are.
_SETUP = f"""
set -e
{_ONE} sleep infinity & one=$!
{_ONE} sleep infinity & two=$!
for at in $one $two; do
  until read -r child </proc/$at/task/$at/children; [ "$(cat /proc/$child/comm)" = sleep ]; do sleep .01; done
done 2>/dev/null
ip link add one type veth peer name two
ip link set one netns $one
ip link set two netns $two
set_up() {{
  on="{_ENTER.format(at="$1")}"
  $on ip addr add $3/24 dev $2
  $on ip link set $2 up
  $on ip link set lo up
  $on mount -t tmpfs none "$LOCAL"
  $on hostname $2
}}
set_up $one one {ADDRESSES[0]}
set_up $two two {ADDRESSES[1]}
echo $one $two
cat >/dev/null # until whoever started this is gone
"""


def can_make_machines() -> bool:
    """Whether this system lets us."""
    if not all(shutil.which(name, path=_PATH) for name in ("unshare", "nsenter", "ip", "mount")):
        return False
    return subprocess.run([*_BOTH, *_ONE.split(), "true"], capture_output=True, check=False).returncode == 0


class Machines:
    """Two machines at `ADDRESSES`; `local` is a folder that is an empty one of its own on each."""

    def __init__(self, local: Path) -> None:
        command = [*_BOTH, "bash", "-c", _SETUP]
        environment = {"PATH": _PATH, "LOCAL": str(local)}
        self._holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self._holder.stdout is not None
        self._inside = self._holder.stdout.readline().split()
        assert len(self._inside) == len(ADDRESSES), "the namespaces could not be joined"
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self._first = children.read_text(encoding="ascii").strip()

    def command(self, machine: int, words: list[str]) -> list[str]:
        """The command that runs `words` on a machine, 0 or 1."""
        both = ["nsenter", "-t", self._first, "--user", "--preserve-credentials", "--net", "--mount", "--pid"]
        return [*both, *_ENTER.format(at=self._inside[machine]).split(), *words]

    def run(
        self, machine: int, *words: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a machine to its end."""
        command = self.command(machine, list(words))
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def switch_off(self, machine: int) -> None:
        """End all that runs on a machine at once; the cable stays."""
        self.run(machine, "bash", "-c", "kill -KILL -1")

    def close(self) -> None:
        """Switch both off, with all that runs on them."""
        self._holder.kill()
        self._holder.wait()
