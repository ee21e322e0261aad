"""Studies that a site was asked to take part in, kept so that its people can read them before they decide."""

from __future__ import annotations

import re
from pathlib import Path

from fedgraft.common.base.disk import oldest_first
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import make_folder, read_json, write_atomic
from fedgraft.common.study.study import (
    Study,
    locate,
    parse_study,
    read_study,
)

_FOLDER = "pending_studies"
_MOST = 20
"""How many pending studies are kept, the newest; a coordinator that keeps asking fills no disk."""
_DIGEST, _DIGITS = r"^[0-9a-f]{8,64}$", 64


def keep_pending(folder: Path, study: Study) -> None:
    """Keep a study that the coordinator sent, in the site's home folder, until somebody looks at it."""
    pending = folder / _FOLDER
    make_folder(pending)
    write_atomic(pending / f"{study.digest}.json", study.to_json(), private=True)
    for old in oldest_first(pending.glob("*.json"))[:-_MOST]:
        old.unlink(missing_ok=True)  # another process of the site may have been asked as well


def find_study(folder: Path, ref: str, *, whole: bool = False) -> Study:
    """A study by its file, by the name of one that ships, or by the digest (8 digits or more) of one that was offered.

    InputError or StudyError if there is none, or it has faults; with `whole` also for a part of a digest, which is
    enough to look at a study, and not to decide: whoever writes studies can make two that begin with the same digits.
    """
    if re.fullmatch(_DIGEST, ref) and not Path(ref).exists():
        if whole and len(ref) < _DIGITS:
            fix = "Give all 64 digits, as `fedgraft site review` shows them: several studies can begin like that."
            raise InputError(f"{ref}: is a part of a digest.", fix=fix)
        found = sorted((folder / _FOLDER).glob(f"{ref}*.json"))
        if len(found) != 1:
            known = ", ".join(path.stem[:12] for path in sorted((folder / _FOLDER).glob("*.json"))) or "none"
            raise InputError(f"{len(found)} offered studies begin with {ref}.", fix=f"Offered here: {known}.")
        study = parse_study(read_json(found[0]), str(found[0]))
        if study.digest != found[0].stem:
            raise InputError(f"{found[0]}: is not the study that was offered.", fix="Ask the coordinator for its file.")
        return study
    return read_study(locate(Path(ref)))[0]
