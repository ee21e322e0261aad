"""The error tree. Commands turn it into one line and an exit code; nothing else is caught there.

FedgraftError
|-- InputError            exit 2: something a person wrote or pointed at is wrong
|   |-- StudyError        a study, scenario or site file; carries every fault found
|   |-- DataError         a cohort: folder, table, labels
|   |-- WeightsError      a weights file or its manifest
|   |-- LedgerError       a site's privacy ledger is missing, damaged, or older than it was
|   `-- RosterError       a mask key that is not its site's
|-- PolicyError           exit 1: a site's own policy does not allow what was asked
`-- RunError              exit 1: the run itself failed
    |-- QuorumError       too few sites answered
    `-- ResumeError       a run's folder cannot be continued
"""

from __future__ import annotations

from collections.abc import Sequence

ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends a program on purpose, and is let through by a wall that holds everything else up.

Such a wall catches BaseException: extensions in Rust (safetensors, cryptography, some decoders) panic with one that is
no Exception.
"""


class FedgraftError(Exception):
    """Base of all errors a person may see: one sentence of what is wrong, and what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.fix = fix


class InputError(FedgraftError):
    """Something a person wrote or pointed at is wrong."""

    exit_code = 2


class StudyError(InputError):
    """A study, scenario or site file has faults; all of them are listed at once."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {fault}" for fault in self.faults))


class DataError(InputError):
    """A cohort cannot be built from what the site pointed at."""


class WeightsError(InputError):
    """A weights file or its manifest is not what it should be."""


class LedgerError(InputError):
    """A site's privacy ledger cannot be trusted, so nothing may be spent."""


class RosterError(InputError):
    """A mask key is not known to be its site's, so nothing may be masked with it."""


class PolicyError(FedgraftError):
    """A site's own policy does not allow what was asked."""


class RunError(FedgraftError):
    """A run, or the server or site that it needs, failed on the way; exit code 1."""


class QuorumError(RunError):
    """Too few sites answered for the round to count."""


class IncompleteError(RunError):
    """A run came to its end with fewer sites than were asked, and its study does not say that fewer will do."""


class ResumeError(RunError):
    """A run's folder cannot be continued: it is none, of another study, or its checkpoint is damaged."""
