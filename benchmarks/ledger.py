"""What a charge and a look at a privacy ledger of 300 rows cost, CPU time, the median of 20.

python -m benchmarks.ledger
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from fedgraft.client.privacy.ledger.hash_chain import Facts
from fedgraft.client.privacy.ledger.ledger import Caps, Ledger
from fedgraft.common.privacy.accountant import Event

ROWS, RUNS = 300, 20


def main() -> None:
    """Print both."""
    event, facts, caps = Event(4.0, 0.1, 10), Facts("patient", 600, "a" * 64), Caps(1e9)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "state.sqlite", Path(folder) / "witness.json", 1e9, 1e-3)
        for number in range(ROWS):
            ledger.charge("study", number, event, facts, caps)
        charges, looks = [], []
        for number in range(ROWS, ROWS + RUNS):
            start = time.process_time()
            ledger.charge("study", number, event, facts, caps)
            charged = time.process_time()
            ledger.rows()
            charges.append(charged - start)
            looks.append(time.process_time() - charged)
    print(f"charge {statistics.median(charges) * 1000:.1f} ms, look {statistics.median(looks) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
