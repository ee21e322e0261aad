"""A model's forward pass as per-sample gradients need it: nothing in place, and only layers of which they are known.

Backward hooks make a layer's output a view, which autograd forbids to change in place; torchvision's networks do that
everywhere (inplace ReLU, `out += identity`). torch.fx records the pass once, and what it recorded is written anew.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from fedgraft.client.privacy.dp.gradients.hooks import SAMPLERS
from fedgraft.common.base.errors import InputError
from fedgraft.common.models.model import TransferModel
from fedgraft.common.study.plan import ADAPTERS, Role


class DpTwin(nn.Module):
    """A model's second body: the same parameters and buffers under the same keys, and a forward pass not in place."""

    def __init__(self, backbone: nn.Module, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = heads

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (N, classes) by task, the same as of the model it was made from."""
        z = self.backbone(x)
        return {task: head(z) for task, head in self.heads.items()}


def dp_twin(model: TransferModel, trained: Collection[str]) -> nn.Module:
    """`model` fit for per-sample gradients of the entries `trained`; itself if these are heads and adapters alone.

    What the twin trains is trained in the model. Layers are in training mode or not as they are in the model now.
    InputError says which layer of what is trained cannot be, or that the network's forward pass cannot be recorded.
    """
    _refuse_layers(model, trained)
    if all(key.startswith("heads.") for key in trained):
        return model
    tags = model.tags()
    adapted = any(tags[key].role in ADAPTERS for key in trained)
    if adapted and model.unseparated:
        raise InputError(
            f"{model.unseparated} does not see each case once, by itself, so its adapter has no gradient by case.",
            fix="Train heads alone, or another backbone.",
        )
    if model.ties_cases:
        raise InputError(
            "In training this backbone ties the cases of a batch together, so no case has a gradient of its own.",
            fix="Train heads alone.",
        )
    if all(tags[key].role is Role.HEAD or tags[key].role in ADAPTERS for key in trained):
        return model  # nothing works in place on what an adapter's two layers give
    twin = DpTwin(out_of_place(model.backbone), model.heads)
    if set(twin.state_dict()) != {key for key in model.state_dict() if not key.startswith("domain_discriminators.")}:
        raise InputError("This backbone has entries that its forward pass does not use.", fix="Train heads alone.")
    return twin


def out_of_place(network: nn.Module) -> fx.GraphModule:
    """The same network over the same parameters, of which no operation changes its input; state keys are unchanged.

    InputError if its forward pass cannot be recorded.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        raise InputError(
            f"The forward pass of {type(network).__name__} depends on its data, or is not made of torch's operations, "
            "so it cannot be rewritten for private training.",
            fix="Train heads alone.",
        ) from error
    rewritten = fx.GraphModule(network, graph)
    for node in list(graph.nodes):
        if _make_out_of_place(rewritten, node):
            _read_result(node)
    graph.lint()
    rewritten.recompile()
    return rewritten


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        """Whatever has no parts stays a module, so that stochastic depth keeps asking whether it is training."""
        return not any(True for _ in m.children())


def _refuse_layers(model: TransferModel, trained: Collection[str]) -> None:
    for name, part in model.named_modules():
        own = {f"{name}.{key}".lstrip(".") for key in part._parameters}
        if own & set(trained) and type(part) not in SAMPLERS:  # a subclass may do more
            raise InputError(
                f"{name} is a {type(part).__name__}, of which per-sample gradients are not known.",
                fix="Train heads alone, or another backbone.",
            )
        if own & set(trained) and isinstance(part, nn.Conv2d) and _pads_oddly(part):
            raise InputError(f"{name} pads its input in a way of which per-sample gradients are not known.")


def _pads_oddly(layer: nn.Conv2d) -> bool:
    return isinstance(layer.padding, str) or layer.padding_mode != "zeros"


def _make_out_of_place(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's operation worked in place; it no longer does."""
    if node.op == "call_module":
        part = network.get_submodule(str(node.target))
        if getattr(part, "inplace", False) is not True:
            return False
        # The module is shared with the model, which goes on as it is.
        part = copy.copy(part)
        part.inplace = False  # type: ignore[assignment]  # not a part but a flag
        network.set_submodule(str(node.target), part)
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    if node.op == "call_method" and _in_place_name(str(node.target)):
        node.target = str(node.target)[:-1]
        return True
    if node.op == "call_function" and (other := _function(node.target)) is not None:
        node.target = other
        return True
    return False


def _in_place_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _function(target: Any) -> Any:
    """The function that does the same out of place; None if this one already is."""
    name = getattr(target, "__name__", "")
    if getattr(operator, name, None) is target and name.startswith("i"):  # iadd has the twin add, iand and_, index none
        return getattr(operator, name[1:], None) or getattr(operator, f"{name[1:]}_", None)
    if _in_place_name(name) and getattr(torch, name, None) is target:
        return getattr(torch, name[:-1])
    return None


def _read_result(node: fx.Node) -> None:
    """Whoever read the changed input after the change reads the result."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node):
        return
    order = {other: at for at, other in enumerate(node.graph.nodes)}
    source.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])
