"""A site acts on studies that its people approved, known by the digest of all that they ask."""

from __future__ import annotations

import json
import os

import pytest

from fedgraft.client.governance import pending_studies
from fedgraft.client.governance.approval import (
    approve,
    is_approved,
    read_approvals,
    withdraw,
)
from fedgraft.client.governance.pending_studies import find_study, keep_pending
from fedgraft.common.base.disk import oldest_first
from fedgraft.common.base.errors import InputError, StudyError


def test_what_is_approved_is_that_study_and_no_other(tmp_path, make_study):
    one, other = make_study(), make_study(seed=4)
    assert not is_approved(tmp_path, one.digest)
    approval = approve(tmp_path, one.digest, one.name)
    assert is_approved(tmp_path, one.digest)
    assert not is_approved(tmp_path, other.digest)
    assert not is_approved(tmp_path / "elsewhere", one.digest)
    assert not is_approved(tmp_path, one.digest[:12])
    assert approval.approved.endswith("+00:00")
    assert (tmp_path / "approvals.json").stat().st_mode & 0o077 == 0


def test_approving_twice_changes_nothing(tmp_path, make_study):
    first = approve(tmp_path, make_study().digest)
    before = (tmp_path / "approvals.json").read_bytes()
    assert approve(tmp_path, make_study().digest) == first
    assert (tmp_path / "approvals.json").read_bytes() == before


def test_an_approval_can_be_withdrawn_and_given_again_and_all_of_it_is_kept(tmp_path, make_study):
    study = make_study()
    approve(tmp_path, study.digest)
    withdraw(tmp_path, study.digest)
    assert not is_approved(tmp_path, study.digest)
    approve(tmp_path, study.digest)
    assert is_approved(tmp_path, study.digest)
    assert [one.withdrawn is None for one in read_approvals(tmp_path)] == [False, True]
    withdraw(tmp_path, study.digest)
    with pytest.raises(InputError, match="No study"):
        withdraw(tmp_path, study.digest)


@pytest.mark.parametrize("text", ["", "{", "{}", '[{"digest": "x"}]', '["*"]', "[null]"])
def test_a_damaged_file_approves_nothing_and_is_not_written_over(tmp_path, make_study, text):
    study = make_study()
    approve(tmp_path, study.digest)
    (tmp_path / "approvals.json").write_text(text)
    assert not is_approved(tmp_path, study.digest)
    with pytest.raises(InputError, match=r"approvals\.json"):
        approve(tmp_path, study.digest)
    assert (tmp_path / "approvals.json").read_text() == text


def test_a_study_is_found_by_file_by_name_and_by_the_digest_of_an_offer(tmp_path, make_study):
    study = make_study()
    (tmp_path / "mine.yaml").write_text(study.to_yaml())
    assert find_study(tmp_path, str(tmp_path / "mine.yaml")) == study
    assert find_study(tmp_path, "quickstart").name == "quickstart"
    with pytest.raises(InputError, match="Offered here: none"):
        find_study(tmp_path, study.digest)
    keep_pending(tmp_path, study)
    assert find_study(tmp_path, study.digest).digest == study.digest
    assert find_study(tmp_path, study.digest[:8]).digest == study.digest
    with pytest.raises(StudyError, match="no such file"):
        find_study(tmp_path, "nowhere.yaml")


def test_an_offer_that_was_changed_on_disk_is_not_the_one_that_was_made(tmp_path, make_study):
    study = make_study()
    keep_pending(tmp_path, study)
    path = tmp_path / "pending_studies" / f"{study.digest}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 77}))
    with pytest.raises(InputError, match="not the study that was offered"):
        find_study(tmp_path, study.digest)


def test_only_the_newest_offers_are_kept(tmp_path, make_study):
    for seed in range(25):
        study = make_study(seed=seed)
        keep_pending(tmp_path, study)
        os.utime(tmp_path / "pending_studies" / f"{study.digest}.json", ns=(seed, seed))
    keep_pending(tmp_path, make_study(seed=99))
    kept = {path.stem for path in (tmp_path / "pending_studies").iterdir()}
    assert len(kept) == 20
    assert make_study(seed=99).digest in kept
    assert make_study(seed=0).digest not in kept


def test_offers_that_come_at_once_are_all_answered(tmp_path, make_study, monkeypatch):
    """Two processes of a site are asked at the same moment, and both find the same ones too many."""

    def found(paths):
        there = oldest_first(paths)
        for path in there[:-20]:
            path.unlink()
        return there

    for seed in range(21):
        (tmp_path / "pending_studies").mkdir(exist_ok=True)
        (tmp_path / "pending_studies" / f"{seed}.json").touch()
    monkeypatch.setattr(pending_studies, "oldest_first", found)
    keep_pending(tmp_path, make_study())
    assert find_study(tmp_path, make_study().digest) == make_study()
    assert len(list((tmp_path / "pending_studies").iterdir())) == 20


def test_a_file_that_was_edited_in_place_is_read_again_whatever_its_time_says(tmp_path, make_study):
    """As some tools leave a file that they have changed: of the same length, with the time that it had."""
    one, other = make_study(), make_study(seed=9)
    approve(tmp_path, one.digest)
    path = tmp_path / "approvals.json"
    before = path.stat()
    assert is_approved(tmp_path, one.digest)
    path.write_text(path.read_text().replace(one.digest, other.digest))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_approved(tmp_path, one.digest)
    assert is_approved(tmp_path, other.digest)
