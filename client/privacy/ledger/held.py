"""Where a site's ledger is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedgraft.client.privacy.ledger.hash_chain import witness_folder
from fedgraft.client.privacy.ledger.ledger import Ledger
from fedgraft.common.base.disk import exists


@dataclass(frozen=True)
class Held:
    """Where a site's ledger lies, and its witness, which should not be restored together with it."""

    ledger: Path
    witness: Path

    @classmethod
    def of(cls, state: Path, elsewhere: Path | None = None) -> Held:
        """The ledger in a site's state folder, and its witness in a folder that `witness_folder` says."""
        return cls(state / "ledger" / "ledger.sqlite", witness_folder(state, elsewhere) / "ledger.json")

    def exists(self) -> bool:
        """Whether there is a ledger, or was one."""
        return any(map(exists, self._places))

    @cached_property
    def _places(self) -> tuple[str, str]:
        """Asked at every visit."""
        return str(self.ledger), str(self.witness)

    def open(self, epsilon_max: float) -> Ledger:
        """The site's ledger; LedgerError if it cannot be trusted."""
        return Ledger(self.ledger, self.witness, epsilon_max)
