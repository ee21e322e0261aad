"""A person's own file keeps its words and its comments when a value in it is changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fedgraft.client.enrolment.edit_yaml import change_values, filled
from fedgraft.common.base.errors import InputError

SHIPPED = Path(__file__).parents[4] / "configs" / "sites" / "hospital.yaml"
MASKS = {"key": "masking.key", "roster": "masks.json", "identities": {"north": "a b: # c", "south": "d'\"e"}}


def changed(path: Path, text: str, **changes: object) -> str:
    path.write_text(text)
    change_values(path, changes)
    after = path.read_text()
    assert yaml.safe_load(after) == yaml.safe_load(text) | changes
    return after


def test_the_shipped_file_keeps_every_other_line(tmp_path):
    text = SHIPPED.read_text()
    after = changed(
        tmp_path / "site.yaml", text, secure_aggregation=MASKS, server={"address": "a.example:1", "ca": "ca.crt"}
    )
    kept = [line for line in text.splitlines() if not line.startswith(("secure_aggregation:", "server:"))]
    assert [line for line in after.splitlines() if line in kept] == kept
    assert "# for studies with secure aggregation, from the kit" in after
    again = changed(tmp_path / "site.yaml", after, secure_aggregation=MASKS | {"identities": {}})
    assert "# for studies with secure aggregation, from the kit" in again
    assert [line for line in again.splitlines() if line in kept] == kept


ODD = {"a b: # c": ["d'\"e", None, True], "": "#"}


def test_a_file_is_filled_with_other_values_and_still_explains_them():
    text = SHIPPED.read_text()
    values = yaml.safe_load(text)
    assert yaml.safe_load(filled(text, values)) == values
    other = values | {
        "name": "a # b",
        "secure_aggregation": MASKS,
        "cohort": values["cohort"] | {"label_map": ODD, "window": ODD},
    }
    other["policy"] = values["policy"] | {"train": ["head"], "delta": 1e-7, "backbones": []}
    after = filled(text, other)
    assert yaml.safe_load(after) == other
    for line in text.splitlines():
        if "#" in line:
            assert line[line.index("#") :] in after


@pytest.mark.parametrize("values", [{"name": "a"}, {"name": "a", "b": 1, "c": 2}, {"name": {"a": 1}, "b": 1}])
def test_a_file_that_does_not_explain_these_keys_is_not_filled(values):
    with pytest.raises(ValueError, match="explain"):
        filled("name: x  # who\nb:\n  c: 1  # what\n", values)


@pytest.mark.parametrize(
    "text",
    [
        "# head\nname: a  # who\nsecure_aggregation:\n  key: x\n  # within\n\n  roster: y\n# of the next\nstate: s\n",
        "name: a\nsecure_aggregation: {key: 'x # y', roster: z}   # flow\nstate: s",
        "secure_aggregation:\n# not indented\n  key: x\nstate: s # last\n",
        "name: a\n",
        "secure_aggregation: null\n\n\n# the end\n",
        "secure_aggregation:\n- a\n- b\nname: a\n",
        '"secure_aggregation": null\nname: a\n',
    ],
)
def test_other_ways_to_write_it(tmp_path, text):
    after = changed(tmp_path / "site.yaml", text, secure_aggregation=MASKS)
    outside = [
        line for line in text.splitlines() if "#" in line and line.startswith("#") and "not indented" not in line
    ]
    assert all(line in after.splitlines() for line in outside)
    for comment in ("# who", "# flow", "# last"):
        assert (comment in after) == (comment in text)


def test_json_stays_json(tmp_path):
    assert json.loads(
        changed(tmp_path / "site.yaml", json.dumps({"name": "a", "secure_aggregation": None}), secure_aggregation=MASKS)
    )


def test_nothing_is_written_where_nothing_changes(tmp_path):
    path = tmp_path / "site.yaml"
    changed(path, "name: a\n", secure_aggregation=MASKS)
    before = path.stat().st_mtime_ns
    change_values(path, {"secure_aggregation": MASKS})
    assert path.stat().st_mtime_ns == before
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text", ["{name: a, secure_aggregation: null} # flow\n", "name: |\n  x\nsecure_aggregation: &a\n  b: 1\nc: *a\n"]
)
def test_what_only_a_person_can_change_is_left_and_said(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="by hand"):
        change_values(path, {"secure_aggregation": MASKS})
    assert path.read_text() == text
