"""The order in which a person writes keys means nothing, and a key stands once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedgraft.client.enrolment.config import read_config
from fedgraft.client.privacy.policy import read_policy
from fedgraft.common.base.errors import StudyError
from fedgraft.common.base.files import CONFIGS
from fedgraft.common.config.config_files import read_mapping
from fedgraft.common.config.renamed import KEYS
from fedgraft.common.study.study import parse_study, read_study
from fedgraft.server.provisioning.consortium import read_consortium
from fedgraft.simulations.phantoms.scenario import load_scenario

STUDIES = sorted((CONFIGS / "studies").glob("*.yaml"))
TABLE = """
name: table
tasks: [{name: cls, classes: [a, b]}]
input:
  kind: table
  numeric: [two, one]
  categorical: {zone: [x, y, z], sex: [m, f], arm: [q, p]}
model: {backbone: table_linear}
method: fedavg
"""


def shuffled(value: Any, draw: random.Random) -> Any:
    """The same value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(own, draw)) for key, own in value.items()]
        draw.shuffle(items)
        return dict(items)
    return [shuffled(own, draw) for own in value] if isinstance(value, list) else value


def orders(value: Any) -> Any:
    """Everything that could be enumerated, in the order in which it would be."""
    if isinstance(value, dict):
        return [(key, orders(own)) for key, own in value.items()]
    return [orders(own) for own in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_the_same_whoever_ordered_its_keys(path: Path) -> None:
    study, _ = read_study(path)
    data = {k: v for k, v in read_mapping(path).items() if k not in ("compare", "scenario")}
    for seed in range(5):
        other = parse_study(shuffled(data, random.Random(seed)), "shuffled")
        assert other.digest == study.digest
        assert orders(other.model_dump(mode="json")) == orders(study.model_dump(mode="json"))


def test_columns_of_a_table_are_the_same_for_a_site_and_for_whoever_reads_the_file() -> None:
    """A site gets the study as JSON with sorted keys; the file is as a person wrote it."""
    written = parse_study(yaml.safe_load(TABLE), "file")
    sent = parse_study(yaml.safe_load(written.to_json()), "wire")
    assert list(written.input.categorical) == list(sent.input.categorical) == ["arm", "sex", "zone"]  # type: ignore[union-attr]
    assert written.input.categorical["sex"] == ("m", "f")  # type: ignore[union-attr]  # lists keep their order
    assert written.input.numeric == ("two", "one")  # type: ignore[union-attr]


TWICE = {
    "study": (
        TABLE.replace("name: table\n", "name: table\nseed: 1\nseed: 2\n"),
        "'seed' is given twice, on lines 3 and 4",
    ),
    "deep": (
        TABLE.replace("numeric: [two, one]", "numeric: [one]\n  kind: table"),
        "'kind' is given twice, on lines 5 and 7",
    ),
}


@pytest.mark.parametrize("what", TWICE)
def test_a_key_that_is_given_twice_is_refused_with_both_lines(tmp_path: Path, what: str) -> None:
    text, words = TWICE[what]
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError, match=words) as caught:
        read_study(path)
    assert str(path) in str(caught.value)


def test_so_it_is_in_every_file_that_people_write(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("epsilon_per_study: 1.0\nepsilon_per_study: 8.0\n")
    for read in (read_policy, read_config, read_consortium, lambda p: load_scenario(str(p))):
        with pytest.raises(StudyError, match="given twice, on lines 1 and 2"):
            read(path)


def test_what_is_merged_in_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}\n")
    assert read_mapping(path)["own"] == {"a": 1, "b": 3}


@pytest.mark.parametrize("old", sorted(KEYS))
def test_an_old_key_is_told_its_new_name(old: str) -> None:
    places: dict[str, dict[str, Any]] = {
        "study": {"name": "x", "tasks": [{"classes": ["a", "b"]}], "method": "fedavg", old: 1},
        "stage": {
            "name": "x",
            "tasks": [{"classes": ["a", "b"]}],
            "plan": [{"name": "s", "local": {"kind": "gradient", "epochs": 1}, "share": "all", old: 1}],
        },
    }
    for data in places.values():
        with pytest.raises(StudyError, match=f"{old}: was renamed to {KEYS[old]}"):
            parse_study(data, "old")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"local": {"kind": "gradient", "epochs": 1, "losses": [{"kind": "anchor"}]}},
            "anchor was renamed to proximal",
        ),
        ({"local": {"kind": "statistics", "of": "members"}}, "members was renamed to base_models"),
        ({"local": {"kind": "statistics", "private": {"epsilon": 1, "clip": 2}}}, "clip: was renamed to max_norm"),
    ],
)
def test_so_is_an_old_value(data: dict[str, Any], words: str) -> None:
    stage = {"name": "s", "share": "all", "aggregate": {"kind": "mean"}} | data
    with pytest.raises(StudyError, match=words):
        parse_study({"name": "x", "tasks": [{"classes": ["a", "b"]}], "plan": [stage]}, "old")
