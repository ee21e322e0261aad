"""What a site vouches for: the state of its cases, and the answer that it gave over them; by a key of its own.

The key follows from that of the patients' hashes, which never leaves the site. So nobody else can make an answer that
the site takes for its own, or find out by trying which cases a state stands for.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.common.base.files import canonical_json

_NONCE_BYTES = 16
_PURPOSE = b"fedgraft agreement"


def state_of(cohort: Cohort, asked: str, secret: bytes, nonce: str = "") -> str:
    """64 hex digits that stand for what is counted of a cohort by the question with digest `asked`.

    Patients, labels, values of tables and what files say of themselves are in it. Splits are not, nor pixels. The first
    half is a `nonce`, drawn if not given: so nobody sees, by asking every day, on which days somebody came.
    """
    nonce = nonce or os.urandom(_NONCE_BYTES).hex()
    digest = hmac.new(_key(secret), canonical_json(["state", nonce, asked, list(cohort.patients)]), hashlib.sha256)
    for task in sorted(cohort.targets):
        digest.update(canonical_json([task, list(cohort.targets[task].shape)]))
        digest.update(cohort.targets[task].contiguous().numpy().tobytes())
    if cohort.inputs.ndim == 2:
        digest.update(cohort.inputs.contiguous().numpy().tobytes())
    digest.update(canonical_json([list(map(list, described)) for described in cohort.described]))
    return nonce + digest.hexdigest()[: len(nonce)]


def nonce_in(state: str) -> str:
    """The nonce that a state was made with."""
    return state[: 2 * _NONCE_BYTES]


def seal_of(answer: str, state: str, asked: str, secret: bytes) -> str:
    """The site's seal on the answer with this digest to the question with digest `asked`."""
    return hmac.new(_key(secret), canonical_json(["answer", asked, answer, state]), hashlib.sha256).hexdigest()


def _key(secret: bytes) -> bytes:
    return hmac.new(secret, _PURPOSE, hashlib.sha256).digest()
