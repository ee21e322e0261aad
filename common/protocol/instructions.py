"""What travels between coordinator and site, as plain values. `wire` turns them into Flower records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from operator import is_
from weakref import WeakValueDictionary

import numpy as np

from fedgraft.common.base.files import digest_arrays
from fedgraft.common.privacy.accountant import Spend
from fedgraft.common.protocol.answers import Pin
from fedgraft.common.study.inputs import Split

PROTOCOL = 1
"""Both sides must speak the same version; a site refuses another."""

TRUNK = "*"
"""The name under which a site gives its weight for what all tasks share."""

NOISE = "noise"
"""The name under which private sums say how much noise is in them: its variance, which adds up over sites."""

Arrays = Mapping[str, np.ndarray]


class Code(StrEnum):
    """Why there is no update from a site. Constant words: no text of an exception ever leaves a site."""

    OTHER_PROTOCOL = "other_protocol"
    UNKNOWN_STUDY = "unknown_study"
    OUT_OF_TURN = "out_of_turn"
    """The study has no such exchange, or the site is past it."""
    MISSING_TENSORS = "missing_tensors"
    BAD_TENSORS = "bad_tensors"
    NO_LABELS = "no_labels"
    NO_SOURCE = "no_source"
    """The study learns from a source in a folder at the site, and the site has none."""
    NO_CLUSTER = "no_cluster"
    """The study has clusters of sites, and the site is in none of them."""
    COHORT_CHANGED = "cohort_changed"
    """The site's cases are not those over which it answered for the run's agreement."""
    OTHER_AGREEMENT = "other_agreement"
    """The run's agreement has an answer under the site's name that the site did not give to this question."""
    TOO_FEW_CASES = "too_few_cases"
    BAD_DATA = "bad_data"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    NO_GPU = "no_gpu"
    """The site trains on a GPU only, and there is none."""
    DISK = "disk"
    NOT_APPROVED = "not_approved"
    FAILED = "failed"
    POLICY = "policy"
    """The site's policy does not allow it."""
    PLUGIN_NOT_LISTED = "plugin_not_listed"
    """The site's policy does not list the distribution of a plug-in that the study uses."""
    PLUGIN_VERSION = "plugin_version"
    """The site has another version of a plug-in than the study names, or none."""
    PLUGIN_DIGEST = "plugin_digest"
    """What is installed at the site of a plug-in is not what its policy lists."""
    BUDGET = "budget"
    """The site's budget of privacy is spent, or was charged for this round before."""
    LEDGER = "ledger"
    """The site's ledger cannot be trusted, so that nothing may be released."""
    NO_SECURE_AGGREGATION = "no_secure_aggregation"
    """The site has no mask key, or none that its roster knows, or the study asks for sums in the open."""
    NOT_SECURE = "not_secure"
    """The site does not mask with the sites that it was named."""
    MASK_REUSED = "mask_reused"
    """The site has masked under this number before, or has been greeted for another run since."""
    HELD = "held"
    """What the site would answer waits for a person there, who may let it go; asked again later it may be there."""
    RELEASE_REFUSED = "release_refused"
    """People at the site have decided that what the study would have is not let go: the study is over there."""
    # Said by the coordinator of a site, never by a site:
    DEADLINE = "deadline"
    UNREACHABLE = "unreachable"
    GARBAGE = "garbage"
    WRONG_KEYS = "wrong_keys"
    WRONG_SHAPE = "wrong_shape"
    NOT_FINITE = "not_finite"
    TOO_LARGE = "too_large"
    BAD_WEIGHT = "bad_weight"
    OTHER_CONTEXT = "other_context"
    WRONG_NAME = "wrong_name"


@dataclass(frozen=True)
class Hello:
    """The coordinator's first word, in a run or to ask who can supply what: the study itself, as canonical JSON.

    `agreement` is the digest of the agreement that the run is pinned to, if any, and `pins` are its answers by site.
    """

    study: bytes
    protocol: int = PROTOCOL
    agreement: str = ""
    pins: Mapping[str, Pin] = field(default_factory=dict)


@dataclass(frozen=True)
class Greeting:
    """A site's answer to Hello: who it is and what it has, as counts.

    `cases` counts cases by split, `labels` known training labels by task and class, `problems` left-out files by
    reason.
    """

    site: str
    cases: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    problems: Mapping[str, int] = field(default_factory=dict)
    observer: bool = False
    """Evaluates the aggregated model on public data, and is never asked to train."""
    labelled: bool = True
    """Has training cases with a known label."""
    evaluates: bool = True
    """Lets sums of metrics leave, in the open or masked, as the study is."""
    source: bool = False
    """Holds public source data: works only in stages that are for the source, and is not evaluated."""
    nonce: str = ""
    """Under secure aggregation: what all of the site's masks of this run depend on. The greeting has no counts."""


@dataclass(frozen=True)
class AggregationGroups:
    """Who masks with whom, for one instruction of a study with secure aggregation.

    `number` counts the masked sums of a run. `parts` names, for each part of the reply that is wanted, all sites of its
    sum, each with the nonce that it greeted with.
    """

    number: int
    parts: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Instruction:
    """One exchange with one site: evaluate what you receive on `evaluate`, then do the work of stage `stage`.

    `stage` is an index into the study's plan and `round` counts from 1 within it. `work` False = evaluation only.
    `tensors` are the state entries that the site lacks; `held` is the digest of all the others, "" if there are none.
    """

    study: str
    exchange: int
    stage: int
    round: int
    work: bool
    evaluate: Split | None
    tensors: Arrays
    held: str = ""
    groups: AggregationGroups | None = None
    """In a study with secure aggregation, with whom to mask the reply; None otherwise, and for observers."""


@dataclass(frozen=True)
class Update:
    """A site's answer: trained entries (or sums), its public weights, training figures and metric sums by task.

    `weights` counts the labelled training cases: by task for the heads, and under `TRUNK` for all other entries.
    """

    exchange: int
    tensors: Arrays
    weights: Mapping[str, float]
    train: Mapping[str, float]
    metrics: Mapping[str, Arrays]
    spent: Spend | None = None
    """What the study has cost the site so far; None without differential privacy."""
    cluster: str = ""
    """Where sites choose among the models of clusters, the name of the one that this site has taken and worked on."""


@dataclass(frozen=True)
class MaskedUpdate:
    """A site's answer under secure aggregation: words that say nothing until those of all its group are summed.

    `parts` holds uint64 words by part; `contexts` the digest (hex) of what each was masked for, so that a site that saw
    something else can be found.
    """

    exchange: int
    parts: Mapping[str, np.ndarray]
    contexts: Mapping[str, str]
    spent: Spend | None = None


@dataclass(frozen=True)
class Refusal:
    """No update from this site in this exchange, and why. A site that stays out of a study says its name as well."""

    exchange: int
    code: Code
    site: str = ""


Answer = Update | MaskedUpdate | Refusal
"""What a site may reply to an instruction."""


class Interned:
    """One array for each piece of memory: what sites of a process got of one message is the same object to all of them.

    So it is a question of identity whether an entry stays as it was, which every visit asks of hundreds of them.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[object, ...], np.ndarray] = WeakValueDictionary()
        self._objects: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()

    def of(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """The same values under the same names; nobody may write to them as long as any of them lives."""
        known = self._objects.get
        return {key: array if known(id(array)) is array else self._one(array) for key, array in arrays.items()}

    def _one(self, array: np.ndarray) -> np.ndarray:
        found = self._known.setdefault(_place(array), array)
        self._objects[id(found)] = found
        return found


class Digests:
    """Digests of arrays, remembered by the array: one that stays is not hashed again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[np.ndarray, bytes]] = {}

    def of(self, arrays: Arrays) -> str:
        """Digest over names and contents of `arrays`; "" for none."""
        if not arrays:
            return ""
        parts = {key: np.frombuffer(self._one(array), dtype=np.uint8) for key, array in arrays.items()}
        return digest_arrays(parts)

    def keep_only(self, arrays: Iterable[np.ndarray]) -> None:
        """Forget all but `arrays`, so that the memory of others can go."""
        wanted = set(map(id, arrays))
        if not self._known.keys() <= wanted:
            self._known = {key: value for key, value in self._known.items() if key in wanted}

    def _one(self, array: np.ndarray) -> bytes:
        if id(array) not in self._known:
            # Holding the array keeps its number from being used again.
            self._known[id(array)] = (array, digest_arrays({"": array}).encode())
        return self._known[id(array)][1]


class LastDigest:
    """The digest of the arrays that were asked for last: of the very same ones it is not worked out again.

    An instruction for heads alone says of hundreds of entries that they are held as they were.
    """

    def __init__(self, digests: Digests) -> None:
        self._digests = digests
        self._names: list[str] = []
        self._arrays: list[np.ndarray] = []
        self._digest = ""

    def of(self, arrays: Arrays) -> str:
        """As `Digests.of`; nobody may write to the arrays afterwards."""
        names, own = list(arrays), list(arrays.values())
        if names != self._names or not all(map(is_, own, self._arrays)):
            self._digest = self._digests.of(arrays)
            self._names, self._arrays = names, own
        return self._digest


@lru_cache
def _name(dtype: np.dtype) -> str:
    return dtype.name


def type_name(array: np.ndarray) -> str:
    """The name of an array's type, "float32" and so on; NumPy builds it anew every time it is asked."""
    return _name(array.dtype)


def _place(array: np.ndarray) -> tuple[object, ...]:
    """Where in memory an array lies, and how it is read: equal places hold equal values while both live."""
    about = array.__array_interface__
    return about["data"][0], about["typestr"], about["shape"], about["strides"]
