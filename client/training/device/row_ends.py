"""Where arrays of functions that are worked out number by number end, and whether that is among cases that count.

The last numbers of an array, fewer than the processor takes at once, go through other code than those before, and so do
the last of what each thread gets of a large one. There a sigmoid may differ in a digit: seldom, and not seen for sure
by looking. So it is noted of what width such arrays are, and numbers of rows at which they would end so are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_AT_ONCE = 32
"""Two registers of 16 numbers, the most that are taken at once."""
_ONE_THREADS = 1 << 15
"""Arrays of up to so many numbers are not shared among threads: at::internal::GRAIN_SIZE in torch."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EXACT = _names(
    "abs add sub rsub mul div neg relu threshold_backward maximum minimum clamp clamp_min clamp_max where sqrt sign eq "
    "ne gt ge lt le logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or isfinite isnan isinf floor "
    "round nan_to_num masked_fill hardtanh hardtanh_backward fill zero reciprocal"
)
"""Arithmetic that is rounded as IEEE 754 says wherever it is done; so are choices between numbers."""
_MOVED = _names(
    "view _unsafe_view reshape expand permute transpose t squeeze unsqueeze select slice split split_with_sizes chunk "
    "unbind as_strided detach alias clone copy _to_copy lift_fresh cat stack index index_select index_put gather "
    "scatter scatter_add index_add select_backward slice_backward expand_copy flip roll repeat im2col col2im unfold "
    "unfold_backward constant_pad_nd new_zeros new_ones new_empty new_full empty empty_like empty_strided zeros "
    "zeros_like ones ones_like full full_like scalar_tensor arange set_ resize diagonal tril triu embedding "
    "flatten unflatten contiguous to type_as movedim narrow view_as reshape_as pad dropout feature_dropout "
    "pixel_shuffle upsample_nearest2d bernoulli rand rand_like randn_like native_dropout native_dropout_backward"
)
_SEEN = _names(
    "mm addmm bmm baddbmm addmv mv dot convolution convolution_backward mkldnn_convolution mean sum amax amin max min "
    "argmax prod var var_mean std norm linalg_vector_norm cumsum native_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _batch_norm_no_update native_batch_norm_backward batch_norm_backward "
    "native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward _softmax "
    "_softmax_backward_data _log_softmax _log_softmax_backward_data logsumexp avg_pool2d avg_pool2d_backward "
    "max_pool2d_with_indices max_pool2d_with_indices_backward _adaptive_avg_pool2d _adaptive_avg_pool2d_backward "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward nll_loss_forward "
    "nll_loss_backward linear matmul einsum conv1d conv2d conv3d batch_norm layer_norm group_norm instance_norm "
    "softmax log_softmax max_pool2d adaptive_avg_pool2d adaptive_max_pool2d scaled_dot_product_attention"
)
"""Sums and what is made of a row, a channel or a neighbourhood at a time: looked at by `alike_sizes`."""


class _Noted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the widths of what all other functions give; one that nobody thought of counts."""

    def __init__(self, cases: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cases = cases
        self.widths: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not _sound(func, args, kwargs or {}):
            numbers = (one.numel() for one in tree_leaves(found) if isinstance(one, Tensor) and one.is_floating_point())
            self.widths |= {count // self._cases for count in numbers if count and count % self._cases == 0}
        return found


def _sound(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    name = func._schema.name.removeprefix("aten::")
    name = name if name in _MOVED else name.removesuffix("_")
    if name in ("add", "sub", "rsub") and kwargs.get("alpha", 1) != 1:
        return False  # a multiplication and a sum, rounded once or twice
    if name == "pow":
        return len(args) > 1 and args[1] == 2
    return name in _EXACT or name in _MOVED or name in _SEEN


def row_widths(work: Callable[[], object], cases: int) -> set[int]:
    """How many numbers each of so many cases has in arrays that may not end among cases that count."""
    noted = _Noted(cases)
    with noted:
        work()
    return noted.widths


def end_well(size: int, widths: Collection[int], spare: int) -> bool:
    """Whether no array of so many rows ends among those before the last `spare`, nor any thread's share of it.

    Shares begin where a case does, or a row within a case would be cut in two.
    """
    for width in widths:
        numbers = size * width
        threads = min(torch.get_num_threads(), -(-numbers // _ONE_THREADS))
        if numbers % _AT_ONCE > spare * width:
            return False
        if threads > 1 and (size % threads or numbers // threads % _AT_ONCE):
            return False
    return True
