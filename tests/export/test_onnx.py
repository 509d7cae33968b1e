"""ONNX files: equal outputs at any batch, one file, quiet, and nothing left behind when it fails."""

import copy
import logging
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from prunus.core import FileError, InputError, Inputs, PrunusError, TraceError, VerificationError
from prunus.export import exporters, to_onnx
from prunus.export.onnxruntime import session
from prunus.measure import latency
from tests.networks_of_every_kind import KINDS

onnx = pytest.importorskip("onnx")


class Net(nn.Module):
    """Plain, grouped and strided convolutions, BatchNorm, an addition, a concat, pooling, a linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8))
        self.down = nn.Conv2d(16, 12, 3, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, torch.relu(x + self.grouped(x))], 1)
        return self.head(self.down(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net()
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):  # statistics that are not the identity
        nn.init.uniform_(bn.weight, 0.5, 2)
        nn.init.normal_(bn.bias)
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize("channels_last", [False, True])
def test_outputs_are_equal_at_any_batch(net, tmp_path, channels_last, capfd):
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    path = tmp_path / "deep" / "model.onnx"
    net.train()
    error = to_onnx(net, torch.zeros(1, 3, 9, 9), path)
    assert 0 <= error < 1e-4
    assert net.training
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]  # weights inside, no partial file
    assert capfd.readouterr() == ("", "")
    runner = session(path, threads=1)
    net.eval()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 9, 9)
        (out,) = runner.run(None, {runner.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(out), net(x), rtol=1e-4, atol=1e-5)


SCRIPT = """
import sys, torch
from prunus.export import to_onnx
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
print(to_onnx(net, torch.zeros(1, 3, 8, 8), sys.argv[1]) < 1e-4)
"""


def test_nothing_is_said_in_a_fresh_process(tmp_path):
    """The exporter logs and warns most when it is first imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "m.onnx")], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_file_is_simple(net, tmp_path):
    to_onnx(net, torch.zeros(2, 3, 9, 9), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Conv") == 3
    dims = [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 5]
    assert b"test_onnx.py" not in (tmp_path / "m.onnx").read_bytes()  # no source lines of this machine


def test_channels_last_exports_the_same_graph(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    graphs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        to_onnx(net.to(memory_format=layout), torch.zeros(2, 3, 9, 9), tmp_path / "m.onnx")
        graphs.append([node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node])
    assert graphs[0] == graphs[1]
    assert not net[0].weight.is_contiguous()


def test_the_model_is_left_as_it_was(net, tmp_path):
    before, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    to_onnx(net, torch.zeros(1, 3, 9, 9), tmp_path / "m.onnx")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values()))
    assert torch.equal(rng, torch.get_rng_state())


class Two(nn.Module):
    """Two inputs by keyword, two outputs; `scale` has no batch."""

    def forward(self, x, *, mask, scale):
        return x * mask, (x * scale).sum(1)


def test_keywords_and_several_outputs(tmp_path):
    inputs = Inputs((torch.randn(4, 3),), {"scale": torch.randn(3), "mask": torch.randn(4, 3)})
    assert to_onnx(Two(), inputs, tmp_path / "m.onnx") < 1e-6


class Odd(nn.Module):
    """Adds one while it is exported, and nothing otherwise: a file that lies."""

    def forward(self, x):
        return x + (1.0 if torch.compiler.is_exporting() else 0.0)


def test_a_wrong_file_is_not_kept(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"older")
    with pytest.raises(VerificationError, match=r"differ by .* was not written"):
        to_onnx(Odd(), torch.ones(2, 3), path)
    assert path.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert to_onnx(Odd(), torch.ones(2, 3), path, verify=False) is None


class NotANumber(nn.Module):
    def forward(self, x):
        return torch.where(torch.tensor([True, False, False]), x * float("nan"), x)


class HiddenNaN(nn.Module):
    def forward(self, x):
        return x * (float("nan") if torch.compiler.is_exporting() else 1.0)


def test_not_a_number_is_compared_too(tmp_path):
    assert to_onnx(NotANumber(), torch.ones(2, 3), tmp_path / "a.onnx") == 0
    with pytest.raises(VerificationError):
        to_onnx(HiddenNaN(), torch.ones(2, 3), tmp_path / "b.onnx")


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported_says_so(tmp_path):
    with pytest.raises(TraceError, match=r"could not be exported to ONNX"):
        to_onnx(Branching(), torch.ones(2, 3), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_latency_takes_a_module_or_a_file(net, tmp_path):
    x = torch.zeros(1, 3, 9, 9)
    to_onnx(net, x, tmp_path / "m.onnx")
    assert latency(tmp_path / "m.onnx", x, backend="onnxruntime", batch=3, seconds=0.01).runs >= 5
    assert latency(net, x, backend="onnxruntime", batch=2, seconds=0.01).median_ms > 0
    with pytest.raises(InputError, match="takes 1 inputs"):
        latency(tmp_path / "m.onnx", (x, x), backend="onnxruntime")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileError, match="no file"):
        session(tmp_path / "none.onnx", threads=1)
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(FileError, match="cannot read"):
        session(tmp_path / "bad.onnx", threads=1)


def test_every_export_format_has_a_line_of_help():
    assert "onnx" in exporters
    assert all(entry.line for entry in exporters)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vmap", "does not run the exported network on 1 samples.*batch=1"),
        ("no samples", "ordinary tensors"),
        ("a wrapping subclass as the example", "ordinary tensors"),
        ("scripted", "compiled by TorchScript"),
        ("exported part", "an exported program"),
        ("QAT", "quantised, or prepared"),
        ("lazy", "no shape yet"),
    ],
)
def test_networks_that_cannot_leave_are_refused_by_their_kind(name, said, tmp_path):
    kind = KINDS[name]
    with pytest.raises(PrunusError, match=said):
        to_onnx(kind.model(), kind.example(), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_networks_are_exported_by_several_threads_at_a_time(tmp_path):
    x, filters, stdout = torch.randn(1, 3, 9, 9), list(warnings.filters), sys.stdout
    models = [nn.Sequential(nn.Conv2d(3, 4 + i, 3), nn.ReLU(), nn.Conv2d(4 + i, 2, 3)) for i in range(4)]
    first, inside = models[0].forward, threading.Event()

    def slow(x):  # the second export begins while the first is inside of the exporter
        inside.set()
        time.sleep(0.3)
        return first(x)

    models[0].forward = slow
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(to_onnx, models[0], x, tmp_path / "0.onnx")]
        assert inside.wait(60)
        running += [pool.submit(to_onnx, m, x, tmp_path / f"{i}.onnx") for i, m in enumerate(models[1:], 1)]
        assert all(job.result() < 1e-4 for job in running)
    assert warnings.filters == filters and sys.stdout is stdout and logging.root.manager.disable == 0
