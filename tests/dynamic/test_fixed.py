"""Gates of fixed counts: static shapes, as ONNX; and dynamic on top of static."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prunus
from prunus.core import InputError
from prunus.dynamic import dynamic_, fixed_, gates, realised, skipping
from prunus.export import to_onnx
from tests.dynamic.problem import Basic, example, settled


def test_fixed_counts_are_the_most_salient_channels_as_onnx_too(tmp_path: Path) -> None:
    import onnx

    net, x = settled(Basic()), example(4)
    dynamic_(net, x)
    fixed_(net, [3, 5, 7, 2])
    assert realised(net, [x]).kept.tolist() == [[3, 5, 7, 2]] * 4
    quick = skipping(net, x[:1], dense="never")
    with torch.no_grad():
        for i in range(4):
            torch.testing.assert_close(quick(x[i : i + 1]), net(x[i : i + 1]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-5)
    error = to_onnx(quick, x[:1], tmp_path / "net.onnx", batch=1)
    assert error is not None
    assert error < 1e-5
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "net.onnx")).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    assert all(all(size > 0 for size in shape) for shape in shapes.values())
    outs = [shapes[n.output[0]] for n in graph.node if n.op_type == "Conv" and n.output[0] in shapes]
    assert {shape[1] for shape in outs} >= {3, 5, 7, 2}  # active channels alone


def test_wrong_counts_are_said() -> None:
    net, x = settled(Basic()), example(1)
    dynamic_(net, x)
    for wrong in ([1, 1], [0, 1, 1, 1], [9, 1, 1, 1]):
        with pytest.raises(InputError, match="a number for each of 4 gates"):
            fixed_(net, wrong)


def test_dynamic_on_top_of_static() -> None:
    """The gates are those of the smaller network, and both savings multiply."""
    net, x = settled(Basic(16)), example(3)
    whole = prunus.trace(net, x).costs()["macs"]
    prunus.prune_(net, x, budget=prunus.Budget(macs=0.6))
    dynamic_(net, x, "fbs")
    small = realised(net, [x]).dense
    assert small <= 0.6 * whole
    for gate in gates(net):
        gate.count.fill_(max(gate.outputs // 2, 1))
    said = realised(net, [x])
    assert said.dense == small
    assert said.mean - said.gates < 0.75 * small
    with torch.no_grad():
        torch.testing.assert_close(skipping(net, x, dense="never")(x), net(x), rtol=1e-4, atol=1e-5)
