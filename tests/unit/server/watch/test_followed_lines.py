"""The lines of a file that grows are read once, and all anew where a run was set back."""

import json

import pytest

from fedgraft.common.base.errors import InputError
from fedgraft.server.watch.follow import FollowedLines


def rows(*numbers):
    return [{"exchange": number} for number in numbers]


def text(*numbers):
    return "".join(json.dumps(row) + "\n" for row in rows(*numbers))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def test_whole_lines_are_seen_as_they_come(path):
    lines = FollowedLines(path)
    assert lines.read() == []
    path.write_text(text(1, 2) + '{"exch')
    assert lines.read() == lines.read() == rows(1, 2)
    path.write_text(text(1, 2, 3))
    assert lines.read() == rows(1, 2, 3)
    path.unlink()
    assert lines.read() == []


def test_what_was_read_is_not_read_again(path):
    """A run of 200 sites and rounds has a history of 34 MB, which whoever watches had to read anew after each round."""
    path.write_text(text(1, 2, 3))
    lines = FollowedLines(path)
    lines.read()
    with path.open("r+") as file:
        file.write("no line, and nobody looks")
        file.seek(0, 2)
        file.write(text(4))
    assert lines.read() == rows(1, 2, 3, 4)


@pytest.mark.parametrize("after", [(1,), (1, 2, 4), (1, 2, 4, 5, 6), ()])
def test_a_run_that_was_set_back_is_read_anew(path, after):
    path.write_text(text(1, 2, 3))
    lines = FollowedLines(path)
    lines.read()
    path.write_text(text(*after))
    assert lines.read() == rows(*after)


def test_a_file_in_its_place_is_read_anew(path):
    path.write_text(text(1, 2))
    lines = FollowedLines(path)
    lines.read()
    (path.parent / "new").write_text(text(7, 2))
    (path.parent / "new").replace(path)
    assert lines.read() == rows(7, 2)


def test_a_damaged_line_is_an_error_until_it_is_gone(path):
    path.write_text(text(1) + "[1]\n")
    lines = FollowedLines(path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"history\.jsonl"):
            lines.read()
    path.write_text(text(1, 2))
    assert lines.read() == rows(1, 2)
