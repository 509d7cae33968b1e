"""Which operators a file may name, and what their kernels are kept from: each case crashed, or read too far."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import prunus
from prunus.core.allowed import ATEN, find, listed
from prunus.core.guards import GUARDS, guard_of
from prunus.surgery.operators import resolve
from prunus.surgery.rehearse import _BatchNorms
from tests.surgery.rewriting import whole

aten = torch.ops.aten
X = torch.zeros(1, 2, 4, 4)
NEVER = [
    "_reshape_alias.default",
    "as_strided.default",
    "as_strided_.default",
    "set_.source_Tensor",
    "resize_.default",
    "segment_reduce.default",
    "_convert_indices_from_coo_to_csr.default",
    "_convert_indices_from_csr_to_coo.default",
    "_ctc_loss.default",
    "mkldnn_rnn_layer.default",
    "native_batch_norm.default",
    "native_group_norm.default",
    "_embedding_bag.default",
    "from_file.default",
    "fractional_max_pool2d.default",
    "_unsafe_index.Tensor",
    "empty.memory_format",
    "new_empty_strided.default",
    "transpose_.default",
    "add.out",
    "embedding_renorm_.default",
    "sparse_coo_tensor.indices",
    "_fft_c2r.default",
    "_scaled_dot_product_flash_attention.default",
    "_foreach_add_.Scalar",
    "quantize_per_tensor.default",
    "repeat_interleave.Tensor",
]


@pytest.mark.parametrize("name", NEVER)
def test_what_trusts_its_arguments_is_refused(name):
    with pytest.raises(prunus.FileError, match="none that a rewritten network may call"):
        resolve(f"aten.{name}")


def test_every_name_of_the_list_is_an_operator_with_a_plain_overload():
    for name in ATEN:
        packet = getattr(aten, name, None) or getattr(aten, f"{name}_")
        assert any(listed(getattr(packet, o)) for o in packet.overloads()), name
    assert all(hasattr(aten, name.removeprefix("aten::")) for name in GUARDS if name.startswith("aten"))


def test_nothing_that_is_listed_writes_to_an_output_argument_or_is_named_unsafe():
    names = [n.removeprefix("aten::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("aten::")]
    names = [f"aten.{n}" if "." in n else f"aten.{n}.default" for n in names]
    allowed = [n for n in names if (func := find(n)) is not None and listed(func)]
    assert 400 < len(allowed) < 1000  # of some 3,000
    odd = ("backward", "sparse", "quantize", "storage", "from_file", "_foreach", "nested", "cudnn", "mkldnn")
    assert not [n for n in allowed if n.endswith((".out", "_out")) or any(word in n for word in odd)]
    assert {n.split(".")[1] for n in allowed if "unsafe" in n} == {
        "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes",  # unsafe for autograd, not for memory
    }  # fmt: skip


LEAST = torch.tensor([-(2**63)])
TRUSTED = {
    "fewer values than keys": (
        aten.scaled_dot_product_attention.default,
        (torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4000, 8), torch.zeros(1, 1, 2, 8)),
    ),
    "fewer magnitudes than rows": (aten._weight_norm_interface.default, (torch.zeros(9, 3), torch.zeros(2, 1), 0)),
    "another scale": (aten._upsample_bilinear2d_aa.default, (X, [8, 8], False, 1e-6, 1e-6)),
    "no scale": (aten.upsample_nearest2d.default, (X, [8, 8], 2.0, float("nan"))),
    "another mode": (aten.grid_sampler_2d.default, (X, torch.zeros(1, 4, 4, 2), 7, 0, False)),
    "the least integer": (aten.div.Tensor_mode, (LEAST, torch.tensor([-1]), "trunc")),
    "the least integer by a number": (aten.div_.Scalar_mode, (LEAST, -1, "trunc")),
    "ends beyond the rows": (
        aten._grouped_mm.default,
        (torch.zeros(8, 16), torch.zeros(2, 16, 16), torch.tensor([4, 90], dtype=torch.int32)),
    ),
}


@pytest.mark.parametrize("kind", TRUSTED)
def test_arguments_that_kernels_trust_are_looked_at(kind):
    func, args = TRUSTED[kind]
    assert listed(func)
    with pytest.raises(prunus.InputError, match="must not have"):
        guard_of(func)(args, {})


@pytest.mark.parametrize("rois", [[9.0, 0, 0, 1, 1], [0, float("nan"), 0, 1, 1], [0, 0, 0, 1e9, 1], [-1, 0, 0, 1, 1]])
def test_regions_outside_of_the_pictures_are_refused(rois):
    holds = GUARDS["torchvision::roi_align"]
    assert holds({"input": X, "rois": torch.tensor([[0.0, 0, 0, 3, 3]]), "spatial_scale": 1.0})
    assert not holds({"input": X, "rois": torch.tensor([rois]), "spatial_scale": 1.0})


class Kinds(nn.Module):
    """Operators that are recorded as others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.rms = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.RMSNorm(8)
        self.normed = nn.utils.weight_norm(nn.Linear(8, 8))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]) + torch.fft.fft(x).real + torch.fft.ifft(x).real
        x = nn.functional.interpolate(x, scale_factor=1.5, mode="bilinear").clone().transpose_(2, 3)
        y = torch.empty(x.shape[0], 8)
        y.copy_(self.pool(x).flatten(1).unsqueeze_(0).squeeze_(0))
        return self.head(self.normed(self.rms(y)))


def test_what_models_call_is_recorded_as_what_a_file_may_hold(tmp_path):
    torch.manual_seed(0)
    net, x = Kinds().eval().to(memory_format=torch.channels_last), torch.randn(2, 3, 6, 6)
    small = whole(net, x).eval()
    assert all(listed(find(step.op)) for step in (*small.program.eval.steps, *small.program.train.steps))
    prunus.save(small, tmp_path / "m.safetensors")
    again, x = prunus.load(tmp_path / "m.safetensors"), torch.randn(5, 3, 6, 6)
    assert torch.allclose(again(x), net(x), atol=1e-5)
    assert torch.equal(again(x), small(x))


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.as_strided(self.a(x), (x.shape[0], 8), (8, 1)).view(-1, 8))


def test_a_model_that_calls_anything_else_cannot_be_rewritten():
    with pytest.raises(prunus.TraceError, match="forward calls the operator aten.as_strided.default"):
        whole(Strided(), torch.zeros(2, 4))


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_norm_is_rehearsed_with_the_checks_and_the_shapes_of_torch(training):
    """In place of torch's own rule, which is slow; other sizes are refused by what calls it."""
    with torch.device("meta"):
        x, c, d = torch.empty(3, 4, 5, 6), torch.empty(4), torch.empty(5)
        rest = (training, 0.1, 1e-5, False)
        expected = aten.batch_norm(x, c, c, c, c, *rest), aten.native_batch_norm(x, c, c, c, c, *rest[:3])[1:]
        with _BatchNorms():
            found = aten.batch_norm(x, c, c, c, c, *rest), aten.native_batch_norm(x, c, c, c, c, *rest[:3])[1:]
            for place in range(4):
                given = [d if i == place else c for i in range(4)]
                with pytest.raises(RuntimeError, match="4 elements"):
                    aten.batch_norm(x, *given, *rest)
            with pytest.raises((RuntimeError, IndexError)):
                aten.batch_norm(c, c, c, c, c, *rest)
            assert training or pytest.raises(RuntimeError, aten.batch_norm, x, c, c, None, None, *rest)
            with pytest.raises(IndexError):  # as on a processor: nothing has told how many channels there are
                aten.native_batch_norm(c, None, None, None, None, *rest[:3])
    with pytest.raises(IndexError):
        aten.native_batch_norm(torch.ones(4), None, None, None, None, *rest[:3])
    for a, b in zip(tree_leaves(found), tree_leaves(expected)):
        assert a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
