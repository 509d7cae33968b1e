"""Multiply-adds against closed forms, and nothing of the model disturbed."""

import copy
import itertools

import pytest
import torch
from torch import nn

from prunus.core import FileError, InputError
from prunus.measure import macs, params, size_on_disk, state_size


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10), 10 * 10 * 8 * 3 * 9),
        (nn.Conv2d(4, 8, 3, stride=2), (4, 9, 9), 4 * 4 * 8 * 4 * 9),
        (nn.Conv2d(8, 12, 5, groups=4), (8, 9, 9), 5 * 5 * 12 * (8 // 4) * 25),
        (nn.Conv2d(6, 6, 3, groups=6, padding=1), (6, 7, 7), 7 * 7 * 6 * 9),
        (nn.Conv2d(3, 4, 3, dilation=2), (3, 9, 9), 5 * 5 * 4 * 3 * 9),
        (nn.Conv1d(3, 4, 5), (3, 20), 16 * 4 * 3 * 5),
        (nn.Conv3d(2, 3, 2), (2, 4, 4, 4), 27 * 3 * 2 * 8),
        (nn.ConvTranspose2d(6, 4, 3, stride=2), (6, 5, 5), 5 * 5 * 6 * 4 * 9),
        (nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (6, 5, 5), 5 * 5 * 6 * (4 // 2) * 4),
        (nn.Linear(7, 5), (7,), 35),
        (nn.Linear(7, 5, bias=False), (3, 7), 3 * 35),
        (nn.LSTM(8, 16, batch_first=True), (5, 8), 5 * (4 * 16 * 8 + 4 * 16 * 16)),
        (nn.GRU(8, 16, batch_first=True), (5, 8), 5 * (3 * 16 * 8 + 3 * 16 * 16)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_costs_its_closed_form(layer, shape, expected, batch):
    assert macs(layer, torch.zeros(batch, *shape)).total == expected


def test_what_has_no_formula_is_listed_not_zeroed():
    result = macs(nn.PairwiseDistance(), (torch.zeros(2, 3), torch.zeros(2, 3)))
    assert result.total == 0
    assert result.not_counted["aten.norm"] == 1


def test_a_bilinear_layer_costs_its_closed_form():
    assert macs(nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4))).total == 3 * 4 * 5


class Products(nn.Module):
    """(5 x 6) @ (6 x 7) a sample, then @ a vector of 7."""

    def forward(self, a, b):
        return (a @ b) @ torch.ones(7)


def test_products_without_parameters_count():
    result = macs(Products(), (torch.zeros(2, 5, 6), torch.zeros(2, 6, 7)))
    assert result.total == 5 * 6 * 7 + 5 * 7
    assert result.by_operator["aten.bmm"] == 210


def test_attention_costs_its_two_products():
    class Attention(nn.Module):
        def forward(self, q, k):
            return nn.functional.scaled_dot_product_attention(q, k, k)

    query, key = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8)  # (N, heads, tokens, d)
    assert macs(Attention(), (query, key)).total == 3 * (5 * 7 * 8) * 2


def test_a_fused_transformer_layer_hides_nothing():
    d, t, hidden = 16, 5, 64
    layer = nn.TransformerEncoderLayer(d, 2, dim_feedforward=hidden, batch_first=True)
    assert macs(layer, torch.zeros(1, t, d)).total == t * (4 * d * d + 2 * d * hidden) + 2 * t * t * d


class Block(nn.Module):
    """The CIFAR basic block; a shortcut of stride two subsamples and pads with zeros (option A)."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.pad = (c_out - c_in) // 2

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(out + x)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(*[Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)])
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def test_resnet20_by_hand():
    """He et al. 2016 count 41 M: the stem, then per width w at side s: 6 convolutions."""
    side = {16: 32, 32: 16, 64: 8}
    stem = 32 * 32 * 3 * 16 * 9
    stages = sum(9 * w * s * s * (6 * w if w == 16 else w // 2 + 5 * w) for w, s in side.items())
    model = ResNet20()
    result = macs(model, torch.zeros(2, 3, 32, 32))
    assert result.total == stem + stages + 640 == 40_551_040
    assert result.by_operator == {"aten.convolution": stem + stages, "aten.addmm": 640}
    assert result.by_module["conv1"] == stem
    assert result.by_module["fc"] == 640
    assert result.by_module["blocks.3"] == 16 * 16 * 9 * (16 * 32 + 32 * 32)
    assert result.by_module[""] == result.total
    assert result.not_counted["aten.relu"] == 19
    assert result.not_counted["aten._native_batch_norm_legit_no_training"] == 19
    assert not any("convolution" in op for op in result.not_counted)
    assert params(model) == 3 * 16 * 9 + 9 * (6 * 16**2 + 5.5 * 32**2 + 5.5 * 64**2) + 2 * (7 * 16 + 6 * 96) + 650


def test_counting_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
    model.train()
    model[1].eval()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    macs(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_random_forwards_do_not_move_the_random_state():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    rng = torch.get_rng_state()
    macs(Noise(), torch.zeros(2, 3))
    assert torch.equal(rng, torch.get_rng_state())


def test_what_runs_untimed_modes_are_restored_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(InputError, match="RuntimeError: broken"):
        macs(model, torch.zeros(1))
    assert model.training


def test_tied_parameters_count_once():
    model = nn.Module()
    model.embed, model.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    model.head.weight = model.embed.weight
    assert params(model) == 40
    assert state_size(model) == 160


def test_size_on_disk(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"x" * 5)
    assert size_on_disk(tmp_path / "a") == 10
    assert size_on_disk(tmp_path) == 15
    with pytest.raises(FileError, match="no file or folder"):
        size_on_disk(tmp_path / "missing")
