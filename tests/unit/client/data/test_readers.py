"""One loop over files of every kind: what a reader gives becomes cases, and nothing goes missing or is guessed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fedgraft.client.data.cohorts.cohort import Cohort, CohortRequest, Place, load_cohort
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.kinds import KINDS, DataKind
from fedgraft.client.data.readers.opening import open_reader
from fedgraft.client.data.readers.reader import Case, Contents, Geometry
from fedgraft.client.data.spec import CohortSpec
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import Extractor, FeaturesInput, ImageInput, SplitSpec, TableInput
from fedgraft.common.study.tasks import Task

TASK = Task(classes=("none", "nodule"))


class LineReader:
    """Reads files of text: a line is an image of that grey, `!` says why the file cannot be used."""

    def __init__(self, spec, tasks, wanted) -> None:
        self.shape = (4, 8)

    def read(self, path: Path, name: str) -> Contents:
        lines = path.read_text().split()
        if lines[0].startswith("!"):
            raise UnusableError(lines[0][1:])
        greys = [np.full(self.shape, float(line), np.float32) for line in lines]
        cases = [Case(grey, geometry=Geometry(2.0, 3.0)) for grey in greys]
        return Contents(cases, len(cases) > 1, problems=Counter(odd=1))

    def finish(self) -> Counter[str]:
        return Counter(at_the_end=1)


class VolumeReader(LineReader):
    def __init__(self, spec, tasks, wanted) -> None:
        self.shape = (5, 4, 8)


@pytest.fixture
def lines(monkeypatch):
    """A kind of data that fedgraft does not know."""

    def bring(reader: type[LineReader]) -> None:
        monkeypatch.setitem(KINDS, "lines", DataKind(reader, folder_labels=True))

    return bring


def load(spec: CohortSpec, folder: Path) -> Cohort:
    wanted = CohortRequest([TASK], ImageInput(size=16), SplitSpec(), 0)
    return load_cohort("north", spec, wanted, Place(folder / "state", folder / "cache", b"secret"))


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        folder, _, file = name.partition("_")
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_text(text)
    return root


def test_another_kind_of_data_is_a_line_and_a_class(lines, tmp_path):
    lines(LineReader)
    root = write(tmp_path / "d", none_a="0.25", nodule_b="0.5 1.0", nodule_c="!torn", nodule_d="!torn")
    cohort = load(CohortSpec(kind="lines", root=root), tmp_path)
    assert cohort.targets["cls"].tolist() == [1, 1, 0]  # files in order: nodule/b twice, none/a
    # A pixel is twice as high as wide: 4 x 8 pixels are as large as 8 x 8, and fill the square.
    grey = (cohort.inputs.double() + 32768) / 65535
    np.testing.assert_allclose(grey.mean(dim=(1, 2, 3)), [0.5, 1, 0.25], atol=1e-4)
    assert cohort.spacings == pytest.approx([1.5] * 3)  # 8 columns of 3 mm are 16 of 1.5 mm
    assert {one.reason: one.count for one in cohort.problems} == {"torn": 2, "odd": 2, "at_the_end": 1}
    assert len(set(cohort.patients)) == 2
    assert (tmp_path / "state" / "left_out.csv").read_text().splitlines()[1:] == ['"nodule/c",torn', '"nodule/d",torn']


def test_a_volume_is_no_image_and_is_not_taken_for_one(lines, tmp_path):
    lines(VolumeReader)
    root = write(tmp_path / "d", none_a="0.25", nodule_b="0.5")
    with pytest.raises(DataError, match=r"a case of shape \(5, 4, 8\) is no image"):
        load(CohortSpec(kind="lines", root=root), tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_its_reader(name, tmp_path):
    spec = CohortSpec(kind=name, root=tmp_path)
    made = Extractor(name="x", weights="0" * 64, preprocessing="none")
    given = {
        "image": ImageInput(),
        "table": TableInput(numeric=("a",)),
        "features": FeaturesInput(count=1, extractor=made),
    }
    reader = open_reader(spec, [TASK], given[spec.what.inputs[0]])
    assert callable(reader.read)
    assert reader.finish() == Counter()


def test_a_kind_that_is_none_is_named_with_those_there_are(tmp_path):
    with pytest.raises(ValidationError, match="there is no kind 'image'; did you mean images"):
        CohortSpec(kind="image", root=tmp_path)


@pytest.mark.parametrize(("kind", "wanted"), [("table", ImageInput()), ("images", TableInput(numeric=("a",)))])
def test_data_of_another_kind_than_the_study_asks_for_are_refused(kind, wanted, tmp_path):
    asked = CohortRequest([TASK], wanted, SplitSpec(), 0)
    with pytest.raises(DataError, match=f"its data are of kind {kind}, but the study's input is {wanted.kind}"):
        load_cohort("north", CohortSpec(kind=kind, root=tmp_path), asked, Place(tmp_path, tmp_path, b"k"))
