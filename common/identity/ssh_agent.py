"""Keys in ssh-agent (draft-ietf-sshm-ssh-agent): which there are, and a signature by one. The key stays where it is.

Of ed25519 alone, in the agent's memory or on a token that it speaks with; the agent may ask its owner each time.
"""

from __future__ import annotations

import os
import socket
from base64 import b64decode, b64encode

from fedgraft.common.base.errors import InputError
from fedgraft.common.identity.persons import PLAIN, TOKEN, fingerprint_of
from fedgraft.common.identity.ssh_wire import SshReader, string

_LIST, _LISTED, _SIGN, _SIGNED = 11, 12, 13, 14
_LARGEST = 1 << 18
_WAIT_S = 120.0
"""So long an agent may ask its owner."""
_START = "Start it, and add the key: eval $(ssh-agent), ssh-add."


class AgentKey:
    """A key in the agent, by its public half."""

    def __init__(self, public: str, comment: str = "") -> None:
        self.public = public
        self.comment = comment

    def sign(self, data: bytes) -> bytes:
        """The signature as OpenSSH has it. InputError if the agent, or its owner, does not sign."""
        blob = b64decode(self.public.partition(" ")[2])
        answer = _asked(bytes([_SIGN]) + string(blob) + string(data) + bytes(4))
        if answer[:1] != bytes([_SIGNED]):
            raise InputError(f"ssh-agent does not sign with {fingerprint_of(self.public)}.", fix="Is the key there?")
        return SshReader(answer[1:]).string()


def agent_keys() -> list[AgentKey]:
    """All ed25519 keys of the agent. InputError if no agent answers."""
    answer = _asked(bytes([_LIST]))
    if answer[:1] != bytes([_LISTED]):
        raise InputError("ssh-agent does not say which keys it has.", fix=_START)
    found = []
    try:
        reader = SshReader(answer[1:])
        for _ in range(reader.number()):
            blob, comment = reader.string(), reader.string()
            kind = SshReader(blob).string().decode("ascii", "replace")
            if kind in (PLAIN, TOKEN):
                public = f"{kind} {b64encode(blob).decode()}"
                found.append(AgentKey(public, comment.decode("utf-8", "replace")))
    except ValueError:
        raise InputError("ssh-agent answers what cannot be read.") from None
    return found


def agent_key(public: str) -> AgentKey:
    """The agent's key with this public half; InputError if it is not there."""
    for key in agent_keys():
        if key.public == public:
            return key
    raise InputError(
        f"ssh-agent does not have the key {fingerprint_of(public)}.", fix="ssh-add it, or plug the token in."
    )


def _asked(request: bytes) -> bytes:
    path = os.environ.get("SSH_AUTH_SOCK")
    if not path:
        raise InputError("No ssh-agent runs: SSH_AUTH_SOCK is not set.", fix=_START)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(_WAIT_S)
            line.connect(path)
            line.sendall(string(request))
            size = int.from_bytes(_exactly(line, 4), "big")
            if size > _LARGEST:
                raise InputError("ssh-agent answers what cannot be read.")
            return _exactly(line, size)
    except OSError as error:
        raise InputError(f"ssh-agent does not answer: {error.strerror or error}.", fix=_START) from None


def _exactly(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = line.recv(count - len(found))
        if not piece:
            raise InputError("ssh-agent has hung up.", fix=_START)
        found += piece
    return found
