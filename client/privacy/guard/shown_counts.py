"""The record of coarse counts that left a site: exact, and without a budget, so that few questions are answered."""

from __future__ import annotations

from pathlib import Path

from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.small_records import SURVIVAL
from fedgraft.common.base.files import locked, read_json, write_json
from fedgraft.common.protocol.instructions import Code


class ShownCounts:
    """Of which studies test cases were counted, and by which one question it was counted who left when."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def admit(self, study: str, most: int) -> None:
        """Let counts of test cases out once in this study, and in so many studies in all. Raises Refused."""
        with locked(self._path):
            known = self._known()
            if study in known:
                raise Refused(Code.POLICY, "coarse counts were shown in this study before, and that answer is lost")
            if sum(not word.startswith(SURVIVAL) for word in known) >= most:
                raise Refused(Code.POLICY, "metrics_studies of the policy were shown coarse counts before")
            write_json(self._path, [*known, study], private=True)

    def admit_survival(self, question: str) -> None:
        """Let counts of who left when out, by the first question for ever, in whichever study. Raises Refused.

        By other bins, over other patients, or after more of them had left, they would tell of few by subtraction.
        """
        with locked(self._path):
            known = self._known()
            before = [word for word in known if word.startswith(SURVIVAL)]
            if before == [SURVIVAL + question]:
                return
            if before:
                raise Refused(
                    Code.POLICY,
                    "who left when was counted before, by other bins, tasks, input or patients, or of other times",
                )
            write_json(self._path, [*known, SURVIVAL + question], private=True)

    def _known(self) -> list[str]:
        return list(map(str, read_json(self._path))) if self._path.exists() else []
