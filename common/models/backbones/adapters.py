"""Low-rank adapters: W x becomes W x + (alpha / rank) B A x, where W stays and A and B learn.

Hu et al. 2021, "LoRA: low-rank adaptation of large language models". A begins as a layer of its own would and B at 0,
so that a model begins as it was. A layer's own entries keep their names, and A and B are `lora_a.weight` and
`lora_b.weight` below it: plain layers, so that whatever knows those knows them. Of a convolution A is one of the same
kernel to `rank` channels and B a 1x1 convolution; of torch's attention one pair serves query, key and value together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedgraft.common.base.errors import ENDS, InputError
from fedgraft.common.models.backbones.backbone import Backbone
from fedgraft.common.study.model_spec import Adapters

_CASES = (2, 3)
_KERNELS = ((1, 1), (3, 3))


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter; its weight and bias are those of the layer whose place it takes."""

    def __init__(self, old: nn.Linear, spec: Adapters) -> None:
        super().__init__(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        self.weight, self.bias = old.weight, old.bias
        self.lora_a, self.lora_b = _linear_pair(old.in_features, old.out_features, spec.rank)
        self.lora_scale = spec.scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, ..., in) to (N, ..., out)."""
        added: Tensor = self.lora_b(self.lora_a(x))
        return F.linear(x, self.weight, self.bias) + self.lora_scale * added


class AdaptedConv2d(nn.Conv2d):
    """A convolution without groups, with an adapter; weight and bias are those of the one whose place it takes."""

    def __init__(self, old: nn.Conv2d, spec: Adapters) -> None:
        how: dict[str, Any] = {
            name: getattr(old, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        super().__init__(old.in_channels, old.out_channels, bias=old.bias is not None, device="meta", **how)
        self.weight, self.bias = old.weight, old.bias
        self.lora_a = nn.Conv2d(old.in_channels, spec.rank, bias=False, **how)
        self.lora_b = nn.Conv2d(spec.rank, old.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_b.weight)
        self.lora_scale = spec.scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, H', W')."""
        added: Tensor = self.lora_b(self.lora_a(x))
        return super().forward(x) + self.lora_scale * added


class AdaptedAttention(nn.MultiheadAttention):
    """torch's self-attention, cases first, with an adapter of what makes query, key and value, and one of what is last.

    torch's own reads the weights of its last layer without calling it, so an adapter in there would do nothing.
    """

    def __init__(self, old: nn.MultiheadAttention, spec: Adapters) -> None:
        bias = old.in_proj_bias is not None
        super().__init__(old.embed_dim, old.num_heads, dropout=old.dropout, bias=bias, batch_first=True, device="meta")
        self.in_proj_weight, self.in_proj_bias = old.in_proj_weight, old.in_proj_bias
        self.out_proj = AdaptedLinear(old.out_proj, spec)  # type: ignore[assignment]  # a linear layer all the same
        self.lora_a, self.lora_b = _linear_pair(old.embed_dim, 3 * old.embed_dim, spec.rank)
        self.lora_scale = spec.scale
        self._qkv_same_embed_dim = False  # keeps torch's encoder layers from a short cut past the adapters

    def forward(  # type: ignore[override]  # of torch's arguments those that networks for images use
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, **others: Any
    ) -> tuple[Tensor, None]:
        """(N, T, d) three times the same to (N, T, d); InputError for masks, or for attention to something else."""
        if query is not key or query is not value or any(given is not None for given in others.values() if given):
            raise InputError("Adapters are for attention of a sequence to itself, without masks.")
        del need_weights
        count, length, width = query.shape
        added: Tensor = self.lora_b(self.lora_a(query))
        seen = F.linear(query, self.in_proj_weight, self.in_proj_bias) + self.lora_scale * added
        q, k, v = seen.view(count, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        answer: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(count, length, width))
        return answer, None


Adapted = AdaptedLinear | AdaptedConv2d | AdaptedAttention


@dataclass
class _Seen:
    """How often an adapter was asked in a pass, and of how many cases."""

    times: int = 0
    cases: set[int] = field(default_factory=set)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del layer
        self.times += 1
        self.cases.add(len(inputs[0]))


def adapt(backbone: Backbone, spec: Adapters, stem: str, shape: Sequence[int]) -> Backbone:
    """The backbone with adapters, drawn from torch's global stream; inputs are (N, *shape), and `stem` gets none.

    InputError if it has no layer that is asked for, or uses one's entries past the layer itself.
    """
    module = backbone.module
    chosen = list(_chosen(module, spec, stem))
    if not chosen:
        raise InputError(
            f"{type(module).__name__} has no {'attention' if spec.where == 'attention' else 'layers'} for adapters.",
            fix="Write model.adapters.where: all." if spec.where == "attention" else "Leave out model.adapters.",
        )
    for name, make in chosen:
        module.set_submodule(name, make())
    return replace(backbone, unseparated=_looked_at(module, shape))


def adapters_in(module: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """The layers of a network that have adapters, by name."""
    return ((name, part) for name, part in module.named_modules() if isinstance(part, Adapted))


def _chosen(module: nn.Module, spec: Adapters, stem: str) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Where adapters go, and what makes the layer that has one."""
    attention: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    for name, part in list(module.named_modules()):
        if not name or name == stem or name.startswith(done):
            continue
        if isinstance(part, nn.MultiheadAttention):
            _demand_plain(name, part)
            done += (f"{name}.",)
            yield name, partial(AdaptedAttention, part, spec)
        elif "attention" in type(part).__name__.lower():
            attention += (f"{name}.",)
        elif type(part) is nn.Linear and (spec.where == "all" or name.startswith(attention)):
            yield name, partial(AdaptedLinear, part, spec)
        elif type(part) is nn.Conv2d and spec.where == "all" and part.groups == 1 and part.kernel_size in _KERNELS:
            yield name, partial(AdaptedConv2d, part, spec)


def _demand_plain(name: str, part: nn.MultiheadAttention) -> None:
    plain = part.batch_first and part._qkv_same_embed_dim and part.bias_k is None and not part.add_zero_attn
    if not plain or type(part) is not nn.MultiheadAttention:
        raise InputError(
            f"{name} is attention of a kind that adapters do not know.",
            fix="Build it with batch_first=True and nothing else out of the ordinary, or leave out model.adapters.",
        )


def _looked_at(module: nn.Module, shape: Sequence[int]) -> str:
    """The first layer whose adapter does not see each case once, by itself; "" if all do."""
    seen = {name: _Seen() for name, _ in adapters_in(module)}
    hooks = [part.lora_a.register_forward_pre_hook(seen[name]) for name, part in adapters_in(module)]
    training = module.training
    try:
        with torch.no_grad():
            for cases in _CASES:
                module.eval()(torch.zeros(cases, *shape))
    except ENDS:
        raise
    except BaseException as error:  # a network of others may rely on anything
        raise InputError(f"{type(module).__name__} fails with adapters: {type(error).__name__}: {error}") from error
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    if unused := [name for name, found in seen.items() if not found.times]:
        raise InputError(
            f"{type(module).__name__} reads the entries of {unused[0]} without calling it, so an adapter there would "
            "do nothing.",
            fix="Take another backbone, or leave out model.adapters.",
        )
    once = _Seen(len(_CASES), set(_CASES))
    return next((name for name, found in seen.items() if found != once), "")


def _linear_pair(inputs: int, outputs: int, rank: int) -> tuple[nn.Linear, nn.Linear]:
    first, last = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
    nn.init.zeros_(last.weight)
    return first, last
