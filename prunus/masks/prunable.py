"""Which parameters of a network are weights: by a rule of shapes and names, or read off the operators of an example."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import ParametrizationList

from prunus.core import Fixed, Inputs
from prunus.core.effective import Effective
from prunus.core.kinds import check_kind
from prunus.core.running import has_values
from prunus.tracing.recording import record
from prunus.tracing.tracer import Tracer

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)
IN_FIRST = (nn.modules.conv._ConvTransposeNd,)  # whose weight is (in, out / groups, *kernel)
NO_WEIGHT = re.compile(r"bias|embed|pos_|position|token|norm")  # in the own name of a parameter, or of its module
MAKES = ("out", "depthwise")
Dims = tuple[tuple[int, ...], int, tuple[int, ...]]  # those of outputs, of inputs, of kernel positions


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight: `dims` say which of its dimensions are outputs and inputs, None where nobody knows; `effective` names
    the tensor of its shape that layers read instead, where forward computes one from it."""

    name: str
    parameter: nn.Parameter
    dims: Dims | None
    effective: str | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """The weights of a network, and the other parameters of two and more dimensions, with why they are none."""

    weights: tuple[Weight, ...]
    others: tuple[Fixed, ...]
    effective: Effective | None = None


def find(model: nn.Module, example_inputs: Any = None) -> Found:
    """The weights of a network, in its own order; those that the example does not visit go by the rule."""
    check_kind(model)
    tracer = None if example_inputs is None else record(model, Inputs.of(example_inputs))
    read = {n for call in tracer.calls for n in call.parameters} if tracer else set()
    embedded = embeddings(model)
    weights: list[Weight] = []
    others: list[Fixed] = []
    seen = set[int]()
    for name, owner, p in _parameters(model):
        if id(p) in seen or p.dim() < 2 or not p.is_floating_point():
            continue
        seen.add(id(p))
        if id(p) in embedded:
            told: str | Weight = "an embedding, whose rows are looked up"
        elif tracer is not None and name in read and not _in_a_basis(owner, name.rpartition(".")[2]):
            told = _traced(tracer, name, owner, p)
        else:
            told = _by_rule(name, owner, p)
        if isinstance(told, Weight):
            weights.append(told)
        else:
            others.append(Fixed(name, told))
    uses = tracer.uses if tracer else None
    named = Effective(uses.numbering.expressions, uses.weights, uses.leaves) if uses and uses.weights else None
    return Found(tuple(weights), tuple(others), named)


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    for path, module in model.named_modules():
        if getattr(module, "holds_weights", True):
            for leaf, p in module.named_parameters(recurse=False):
                yield f"{path}.{leaf}".lstrip("."), module, p


def _in_a_basis(owner: nn.Module, leaf: str) -> bool:
    """Whether a parameter holds coefficients of a basis: they are masked and scored, not the filters that they make."""
    return getattr(owner._modules.get(f"{leaf}_basis"), "of_coefficients", False)


# ---- by the rule ---------------------------------------------------------------------------------------------------


def _by_rule(name: str, owner: nn.Module, p: nn.Parameter) -> Weight | str:
    leaf = name.rpartition(".")[2]
    if _is_scale(owner, p):
        return "it scales another parameter of its module"
    if isinstance(owner, LAYERS) or stored_transposed(owner):
        return "a bias" if "bias" in leaf else Weight(name, p, dims_of_layer(owner, p))
    if isinstance(owner, ParametrizationList):
        return _parametrized(name, leaf, owner, p)
    if "parametrizations" in name.split("."):
        return "the weight of a layer is computed from it"
    if NO_WEIGHT.search(leaf.lower()) or re.search(r"norm|embed", type(owner).__name__.lower()):
        return "by its name it is no weight of a layer (give example_inputs= to read it off the operators)"
    if sum(n > 1 for n in p.shape) < 2 or p.shape[0] == 1:
        return "by its shape it is no weight of a layer (give example_inputs= to read it off the operators)"
    return Weight(name, p, None)


def _is_scale(owner: nn.Module, p: nn.Parameter) -> bool:
    """As g of weight_norm: of one size over one, beside a parameter of as many dimensions that it is broadcast to."""
    others = [q for q in owner.parameters(recurse=False) if q is not p and q.dim() == p.dim() and q.shape != p.shape]
    return any(all(a in (1, b) for a, b in zip(p.shape, q.shape)) for q in others)


def _parametrized(name: str, leaf: str, owner: ParametrizationList, p: nn.Parameter) -> Weight | str:
    state = {n: t.detach() for n, t in (*owner.named_parameters(), *owner.named_buffers())}
    modes = [(m, m.training) for m in owner.modules()]
    owner.eval()
    try:
        with torch.no_grad():

            def made(values: Tensor) -> list[Tensor]:
                return [functional_call(owner, {**{n: t.clone() for n, t in state.items()}, leaf: values}, ())]

            return Weight(name, p, None) if not has_values(p) or zeroes(made, p) else NO_ZEROS
    finally:
        for module, mode in modes:
            module.training = mode


# ---- by the operators ----------------------------------------------------------------------------------------------

NO_ZEROS = "layers read what is computed from it, where its zeros are none"


def _traced(tracer: Tracer, name: str, owner: nn.Module, p: nn.Parameter) -> Weight | str:
    """What the operators say of a parameter that they read."""
    uses, roles = tracer.uses, {d: tracer.roles.get((name, d), ("", 0)) for d in range(p.dim())}
    leaf = uses.numbering.expressions.leaf(name)
    direct = {d: uses.roles[leaf, d] for d in range(p.dim()) if (leaf, d) in uses.roles}
    made = {n: number for n, number in uses.weights.items() if name in uses.made_of[n]}
    if not direct and made:
        same = [n for n, number in made.items() if uses.shown[number].shape == p.shape]
        if not _feeds(tracer, name, list(made.values()), p):
            return NO_ZEROS
        if same:
            number = made[same[0]]
            roles = {d: uses.roles.get((number, d), ("", 0)) for d in range(p.dim())}
    elif direct:
        roles = {d: direct.get(d, ("", 0)) for d in range(p.dim())}
    said = {role for role, _ in roles.values()}
    if not said & {"out", "in", "depthwise"} or "embedding" in {tracer.calls[c].name for r, c in roles.values() if r}:
        return "no layer multiplies by it"
    if isinstance(owner, LAYERS) or stored_transposed(owner):
        dims: Dims | None = dims_of_layer(owner, p)
    else:
        dims = _dims(roles, {tracer.calls[c].name for r, c in roles.values() if r})
    one = made and not direct and len(same) == 1 and len(made) == 1
    return Weight(name, p, dims, same[0] if one else None)


def _dims(roles: dict[int, tuple[str, int]], operators: set[str]) -> Dims | None:
    outs = [d for d, (role, _) in roles.items() if role in MAKES]
    ins = [d for d, (role, _) in roles.items() if role == "in"]
    rest = tuple(d for d, (role, _) in roles.items() if role not in (*MAKES, "in"))
    if len(outs) != 1 or len(ins) != 1:
        return None
    kernel = rest if "convolution" in operators else ()  # else a stack of weights: of experts, say
    return (*(() if kernel else rest), outs[0]), ins[0], kernel


def _feeds(tracer: Tracer, name: str, numbers: list[int], p: nn.Parameter) -> bool:
    uses = tracer.uses
    if not all(has_values(t) for t in uses.leaves.values()):
        return True

    def made(values: Tensor) -> list[Tensor]:
        found = uses.numbering.expressions.values(numbers, {**uses.leaves, name: values})
        return list(found.values())

    return zeroes(made, p)


def zeroes(made: Callable[[Tensor], list[Tensor]], p: Tensor) -> bool:
    r"""Whether zeros of a parameter are zeros of what is computed from it: as many as there are elements set to zero.

    >>> w = torch.randn(4, 5)
    >>> zeroes(lambda v: [v / v.norm(dim=1, keepdim=True)], w), zeroes(lambda v: [v - v.mean(1, keepdim=True)], w)
    (True, False)
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(p.shape, generator=generator).to(p)  # the parameter itself may be masked already
    keep = (torch.rand(p.shape, generator=generator) < 0.5).to(p.device)
    before, after = made(values), made(values * keep)
    if any(a.shape == p.shape for a in after):
        return any(a.shape == p.shape and not bool(a[~keep].any()) for a in after)
    zeros = sum(int((a == 0).sum()) for a in after)
    return zeros > sum(int((b == 0).sum()) for b in before) and zeros >= int((~keep).sum())


# ---- the layers of torch -------------------------------------------------------------------------------------------


def stored_transposed(module: nn.Module) -> bool:
    """The linear layer of GPT-2 in transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def dims_of_layer(owner: nn.Module, p: Tensor) -> Dims:
    """The dimensions of the weight of a layer of torch."""
    turned = isinstance(owner, IN_FIRST) or stored_transposed(owner)
    return ((1,) if turned else (0,)), (0 if turned else 1), tuple(range(2, p.dim()))


def weights_of_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """The weights of torch's own layers, once, by the first name, with the module that holds them."""
    seen = embeddings(model)
    for name, module, p in _parameters(model):
        plain = p.dim() > 1 and p.is_floating_point() and id(p) not in seen
        if plain and (isinstance(module, LAYERS) or stored_transposed(module)):
            if isinstance(_by_rule(name, module, p), str):
                continue
            seen.add(id(p))
            yield name, module, p


def embeddings(model: nn.Module) -> set[int]:
    """The identities of the parameters that embeddings look up."""
    modules = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)))
    return {id(p) for m in modules for p in m.parameters(False)}
