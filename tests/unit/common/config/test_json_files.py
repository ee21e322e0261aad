"""A file of JSON, such as a simulated site's, says the same as it would as YAML, but is read far more quickly."""

from __future__ import annotations

import json

import pytest
import yaml

from fedgraft.common.base.errors import StudyError
from fedgraft.common.config.config_files import read_mapping

CONTENT = {"name": "no", "number": 3, "share": 0.25, "nothing": None, "list": [1, "01", {"a": True}], "text": "ü: -\n"}


def test_json_is_read_without_yaml(tmp_path, monkeypatch):
    path = tmp_path / "site.json"
    path.write_text(json.dumps(CONTENT, indent=1))
    path.with_suffix(".yaml").write_text(path.read_text())
    assert read_mapping(path.with_suffix(".yaml")) == CONTENT
    monkeypatch.setattr(yaml, "load", lambda *_: pytest.fail("YAML was asked, which takes a hundred times as long"))
    assert read_mapping(path) == CONTENT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "a": 2}', "the key 'a' is given twice, on lines 1 and 2"),
        ('{"a": ', "is not valid YAML"),
        ("[1, 2]", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_said_as_of_yaml(tmp_path, text, said):
    (tmp_path / "site.json").write_text(text)
    with pytest.raises(StudyError, match=said):
        read_mapping(tmp_path / "site.json")


def test_what_is_yaml_by_another_name_is_read_all_the_same(tmp_path):
    (tmp_path / "site.json").write_text("a: 1  # a remark\n")
    assert read_mapping(tmp_path / "site.json") == {"a": 1}
