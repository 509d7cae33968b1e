"""The second way to run a layer in a basis: the basis answers first, and the coefficients mix the answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from prunus.bases.basis import Basis, coefficients, interspaced
from prunus.core.checks import check_arguments


@contextmanager
def mixing(model: nn.Module) -> Iterator[tuple[str, ...]]:
    r"""While it is open, layers in a basis run as answers of the basis, mixed by the (sparse) coefficients.

    .. math:: y_o = \sum_{i, n} \lambda^{(o,i)}_n \, (g^{(n)} * x_i)

    A depthwise convolution of every input channel with all basis filters, then one of kernel size 1: the same function
    as with the filters put together first.  It shows what a sparse engine has to compute; dense kernels take longer.
    Criteria and repairs that look at what goes into a layer (``wanda``, ``obc``) see the answers, which is what the
    coefficients multiply: collect, and mask with ``repair=``, while this is open.
    Gives the names of the weights that run so; transposed convolutions, and the projections inside
    ``nn.MultiheadAttention``, are put together as ever.

    >>> import prunus, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3)).double()
    >>> x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    >>> report = prunus.interspace_(net, init="orthonormal")
    >>> with mixing(net) as names:
    ...     mixed = net(x)
    >>> names, bool((mixed - net(x)).abs().max() < 1e-12)
    (('0.weight',), True)
    """
    check_arguments(locals())
    names = []
    with ExitStack() as stack:
        for name, module, leaf, basis in interspaced(model):
            if runs_mixed(module) and leaf == "weight":
                names.append(name)
                module.forward = partial(mixed, module, basis)
                stack.callback(module.__dict__.pop, "forward")
        yield tuple(names)


def runs_mixed(module: nn.Module) -> bool:
    """Whether a layer can run by the answers of its basis."""
    transposed = nn.modules.conv._ConvTransposeNd
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not isinstance(module, transposed)


def mixed(module: nn.Module, basis: Basis, x: Tensor) -> Tensor:
    """What a convolution ``(N, in, *size)`` or a linear layer ``(..., in)`` gives, by the answers of its basis."""
    given, directions = coefficients(module), basis.directions()
    if isinstance(module, nn.Linear):
        answers = x.unflatten(-1, (-1, len(directions))) @ directions.mT  # (..., blocks, m)
        return F.linear(answers.flatten(-2), given, module.bias)
    assert isinstance(module, nn.modules.conv._ConvNd)
    many = given.dim() - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[many - 1]
    single, x = x.dim() == many + 1, x if x.dim() > many + 1 else x[None]
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, module.padding_mode), 0
    channels = x.shape[1]
    filters = directions.reshape(-1, 1, *given.shape[2:]).repeat(channels, *[1] * (many + 1))
    answers = convolve(x, filters, None, module.stride, padding, module.dilation, channels)
    weight = given.flatten(1).reshape(len(given), -1, *[1] * many)  # (out, in * m, 1, ..)
    out = convolve(answers, weight, module.bias, groups=module.groups)
    return out[0] if single else out
