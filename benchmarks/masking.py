"""What masking costs a site: seconds, bytes and error by the number of sites, on one core.

Run as `python -m benchmarks.masking [--parameters 11700000]`.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedgraft.common.secure_aggregation.mask_keys import Pairs, sign_entry, verified
from fedgraft.common.secure_aggregation.masking import (
    Context,
    Layout,
    MaskedSum,
    encode,
    mask,
)

_MEASURED = 5
"""Sites that are timed; with more of them in the sum, the others only complete it where that is cheap."""
_FORM = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


def consortium(count: int) -> dict[str, Pairs]:
    names = [f"site{n:02d}" for n in range(count)]
    private = {name: X25519PrivateKey.generate() for name in names}
    identities = {name: Ed25519PrivateKey.generate() for name in names}
    entries = [sign_entry(name, private[name].public_key(), identities[name]) for name in names]
    pins = {name: key.public_key().public_bytes(*_FORM).decode() for name, key in identities.items()}
    roster = verified(entries, pins)
    return {name: Pairs(name, private[name], roster) for name in names}


def measure(sites: int, parameters: int) -> str:
    pairs = consortium(sites)
    context = Context("study", "tensors", 0, 1, 1, 1, dict.fromkeys(pairs, "nonce"), "model")
    layout = Layout.of({"entries": ((parameters,), "float32"), "weight": ((1,), "float64")})
    wall, total, exact, weights = [], MaskedSum(layout, sites), np.zeros(parameters), 0.0
    whole = sites <= _MEASURED
    for number, own in enumerate(pairs.values()):
        if number >= _MEASURED and not whole:
            break
        values = np.random.default_rng(number).normal(0, 0.05, parameters).astype(np.float32)
        weight = 100.0 + number
        started = time.perf_counter()
        words = encode({"entries": values, "weight": np.array([weight])}, {"entries": weight}, layout, sites)
        mask(words, context.digest(layout, own), context.sites, own)
        wall.append(time.perf_counter() - started)
        total.add(words)
        exact += weight * values.astype(np.float64)
        weights += weight
    error = "not summed"
    if whole:
        sums = total.open()
        error = f"{np.abs(sums['entries'] / sums['weight'] - exact / weights).max():.1e}"
    line = f"{sites:5d} {statistics.median(wall):10.3f} {max(wall):10.3f}"
    return f"{line} {layout.words * 8 / 1e6:10.1f} {error:>14}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=11_700_000)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 5, 10, 50])
    asked = parser.parse_args()
    print(f"{asked.parameters:,} parameters; {_MEASURED} sites timed at most; seconds a site and exchange")
    print("sites   median s  slowest s    MB sent  error of mean")
    for sites in asked.sites:
        print(measure(sites, asked.parameters), flush=True)


if __name__ == "__main__":
    main()
