"""Code of one's own in a session: what cannot be a plug-in is refused where it is registered, in words."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pytest

import fedgraft as fg
from fedgraft.client.data.readers.opening import PluggedReader
from fedgraft.client.data.readers.reader import Case, Contents
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.methods.memory.method import Method
from fedgraft.common.protocol.states import NoState
from fedgraft.common.study.inputs import ImageInput
from helpers.plugins import fresh

assert fresh
pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize("register", ["backbone", "loss", "method", "metric"])
@pytest.mark.parametrize("name", ["my net", "", "Größe", "-x", "n" * 65])
def test_a_name_that_no_study_could_write_is_refused(register: str, name: Any) -> None:
    with pytest.raises(fg.FedgraftError, match=f"is no name for a {register}"):
        getattr(fg, f"register_{register}")(name, object)


def test_a_name_is_refused_where_it_is_registered_and_not_by_the_study_that_has_it() -> None:
    for register in (fg.register_loss, fg.register_metric):
        with pytest.raises(fg.FedgraftError, match=r"'MyOwn' is no name .* small letters"):
            register("MyOwn", object)
    fg.register_backbone("My.Net-2", object)
    values = {"name": "x", "tasks": [{"classes": ["a", "b"]}], "method": "fedavg"}
    fg.Study.parse(values | {"model": {"backbone": "My.Net-2"}, "input": {"kind": "image", "size": 32}})


@pytest.mark.parametrize("register", ["backbone", "loss", "method", "metric"])
def test_what_cannot_be_called_is_refused(register: str) -> None:
    with pytest.raises(fg.FedgraftError, match=f"The {register} 'mine' is int, which cannot be called"):
        getattr(fg, f"register_{register}")("mine", 3)


def test_a_method_has_one_name_and_is_a_method() -> None:
    class Plain(Method[NoState, NoState]):
        kind: Literal["plain"] = "plain"
        summary: ClassVar[str] = "as FedAvg"

    fg.register_method("other", Plain)
    fg.register_method("none", object)
    for name, says in {"other": "calls itself 'plain'", "none": "is no class of Method"}.items():
        with pytest.raises(fg.FedgraftError, match=says):
            fg.Study.parse({"name": "x", "tasks": [{"classes": ["a", "b"]}], "model": {}, "method": name})


GREY = np.full((4, 4), 0.5, np.float32)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (ValueError("of its own"), r"'mine' fails at a\.x: ValueError: of its own"),
        ([GREY], r"gives list of a\.x, and no Contents"),
        (Contents([GREY]), r"gives ndarray of a\.x, and no Case"),  # type: ignore[list-item]
        (Contents([Case(np.full((4, 4), 200, np.int64))]), r"gives int64 from 200 to 200 of a\.x.*Divide"),  # type: ignore[arg-type]
        (Contents([Case(GREY * 300)]), r"gives float32 from 150\.0 to 150\.0 of a\.x"),
        (Contents([Case(GREY * np.nan)]), r"gives float32 from nan to nan"),
    ],
)
def test_a_readers_fault_is_said_with_its_name_and_the_file(given: Any, says: str, tmp_path: Any) -> None:
    class Mine:
        def __init__(self, *_: Any) -> None: ...

        def read(self, *_: Any) -> Any:
            if isinstance(given, Exception):
                raise given
            return given

    spec = CohortSpec.model_construct(kind="mine", root=tmp_path)
    with pytest.raises(DataError, match=says):
        list(PluggedReader(Mine, spec, (), ImageInput()).read(tmp_path / "a.x", "a.x").cases)


def test_a_reader_that_fails_in_the_middle_of_a_file_is_named_as_well(tmp_path: Any) -> None:
    class Torn:
        def __init__(self, *_: Any) -> None: ...

        def read(self, *_: Any) -> Contents:
            return Contents(Case(GREY / (2 - at)) for at in range(4))

    spec = CohortSpec.model_construct(kind="torn", root=tmp_path)
    with np.errstate(divide="raise"), pytest.raises(DataError, match=r"'torn' fails at a\.x: FloatingPointError"):
        list(PluggedReader(Torn, spec, (), ImageInput()).read(tmp_path / "a.x", "a.x").cases)
