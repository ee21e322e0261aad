"""One model of a study on one device. All sites of a process share it: a visit loads the site's entries into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping

import numpy as np
import torch

from fedgraft.client.training.device.alike import Sizes
from fedgraft.client.training.device.compiled import Compiled
from fedgraft.common.methods.memory.method import Ground
from fedgraft.common.models.architecture import blueprint
from fedgraft.common.models.backbones.named import ships
from fedgraft.common.models.initialise import make_model, make_teacher
from fedgraft.common.models.model import TransferModel, state_arrays
from fedgraft.common.protocol.instructions import Arrays, Digests, Interned
from fedgraft.common.protocol.routing import Shapes, forms_of
from fedgraft.common.study.model_spec import Teacher
from fedgraft.common.study.plan import Stage, Tag
from fedgraft.common.study.study import Study


def device_named(name: str) -> torch.device:
    """The device that a site's configuration asks for.

    `auto` is the GPU with the most free memory, or the CPU if there is none: only this lets a site fall back to the
    CPU. `cuda` is that GPU, and `cuda:N` the one with this number; NoGpu if it is not there.
    """
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    number = int(name.partition(":")[2] or -1)
    if number >= count or not count:
        raise NoGpu
    return torch.device("cuda", number if number >= 0 else max(range(count), key=_free_bytes))


def _free_bytes(number: int) -> int:
    return torch.cuda.mem_get_info(number)[0]


class NoGpu(Exception):
    """The GPU that the site asks for is not there, and its configuration does not allow the CPU in its place."""


def leave_gradient(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
    """Put a gradient where the optimiser finds it, laid out in memory as the parameter is: fused ones ask for that."""
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    parameter.grad = gradient


_ALIKE: dict[Hashable, Sizes] = {}


def _kind(study: Study) -> Hashable:
    """Equal for studies whose models are the same but for their entries, if they are made of code that ships alone."""
    made_by = blueprint(study, study.model)
    if made_by.plugins or not all(map(ships, made_by.base_models or (made_by.backbone,))):
        return object()
    return made_by.model_dump_json()


class LocalModel:
    """The model, its tags, and which arrays lie in it now, so that entries that stay are not copied again."""

    def __init__(self, study: Study, device: torch.device, *, compile: bool = False) -> None:
        self.device = device
        self.parts = 1
        """In how many parts batches are worked on: more than one since memory ran out."""
        self.model = make_model(study)
        self.model.to(device)
        if device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        # A pass through a decoder takes the backbone's maps by hooks, which compiled code does not keep.
        self.compiled = Compiled(self.model) if compile and not self.model.decodes else None
        """Passes for plain training where the site asks for compiled ones."""
        self.tasks = study.tasks_by_name
        self.more_metrics = study.evaluate.metrics
        """Names of plug-ins' metrics that the study asks for."""
        self.tags: Mapping[str, Tag] = self.model.tags()
        self.parameters = dict(self.model.named_parameters())
        self.digests = Digests()
        self.interned = Interned()
        self._live = {key: value.detach() for key, value in self.model.state_dict(keep_vars=True).items()}
        # On the CPU the entries as arrays over the same memory: NumPy moves small ones faster than torch does.
        self._memory = {key: value.numpy() for key, value in self._live.items()} if device.type == "cpu" else {}
        self.forms: Shapes = {
            key: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for key, v in self._live.items()
        }
        self._loaded: dict[str, np.ndarray] = {}
        self._study = study
        self._kind = _kind(study)
        self._teachers: dict[Teacher, TransferModel] = {}

    def teacher(self, teacher: Teacher) -> TransferModel:
        """A model of the teacher's shape for answers alone, built once; its entries come with an instruction."""
        if teacher not in self._teachers:
            self._teachers = {teacher: make_teacher(self._study, teacher).eval().requires_grad_(False).to(self.device)}
        return self._teachers[teacher]

    def teacher_forms(self, stage: Stage) -> Shapes:
        """Shapes and types of the entries of the stage's teacher; none if it has none."""
        teacher = self._study.teacher_of(stage)
        return {} if teacher is None else forms_of(state_arrays(self.teacher(teacher)))

    def ground(self, stage: Stage) -> Ground:
        """What the stage's methods stand on."""
        return Ground(self._study, stage, self.tags, self.forms, self.teacher_forms(stage))

    def any_teacher(self, stage: Stage) -> dict[str, np.ndarray]:
        """Entries of a teacher of the right shape that knows nothing, as they would come with an instruction."""
        teacher = self._study.teacher_of(stage)
        return {} if teacher is None else state_arrays(make_teacher(self._study, teacher))

    def alike(self, work: Hashable, look: Callable[[], Sizes]) -> Sizes:
        """Sizes of passes for some kind of work, see `alike_sizes`: as `look` finds them the first time in a process.

        They depend on the machine and on all that decides a model but its entries.
        """
        key = self._kind, str(self.device), torch.get_num_threads(), work
        if key not in _ALIKE:
            _ALIKE[key] = look()
        return _ALIKE[key]

    def load(self, arrays: Arrays) -> None:
        """Put `arrays` (all entries of the model, right shapes) into the model."""
        loaded = self._loaded.get
        for key in [key for key, array in arrays.items() if loaded(key) is not array]:
            array = arrays[key]
            if self._memory:
                np.copyto(self._memory[key], array)
            else:
                self._live[key].copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))
            self._loaded[key] = array

    def begin(self, arrays: Arrays, changes: Iterable[str]) -> None:
        """Put `arrays` into the model for work that changes the entries `changes`."""
        self.load(arrays)
        self.touched(changes)

    def read(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Copies of the model's entries with these keys, as arrays on the CPU."""
        if self._memory:
            return {key: self._memory[key].copy() for key in keys}
        return {key: np.array(self._live[key].cpu().numpy(), order="C") for key in keys}

    def finite(self, keys: Iterable[str]) -> bool:
        """Whether each of the model's entries `keys` has a finite norm, and so neither NaN nor infinity."""
        if self._memory:
            return all(math.isfinite(np.vdot(own, own)) for own in map(self._memory.__getitem__, keys))
        floats = [self._live[key] for key in keys if self._live[key].is_floating_point()]
        return not floats or math.isfinite(torch.nn.utils.get_total_norm(floats))

    def touched(self, keys: Iterable[str]) -> None:
        """Say that the model's entries `keys` no longer hold what was loaded."""
        for key in keys:
            self._loaded.pop(key, None)
