"""Reading weights: the published ones give the published accuracy; what does not fit changes nothing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from prunus.core import FileError
from prunus.zoo import build, load_weights_, resnet20

IMAGES = 400
PUBLISHED = [("resnet20", "resnet20"), ("resnet32", "resnet32"), ("resnet56", "resnet56")]
PUBLISHED.append(("densenet_bc40", "densenet_bc40_k12"))


@pytest.fixture(scope="module")
def cifar10(shared: Path) -> tuple[Tensor, Tensor]:
    """The first test images, decoded here by Pillow alone."""
    import pyarrow.parquet as pq

    rows = pq.read_table(shared / "data/cifar10/test-00000-of-00001.parquet").slice(0, IMAGES)
    pixels = [np.array(Image.open(io.BytesIO(r["bytes"])).convert("RGB")) for r in rows["img"].to_pylist()]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(rows["label"].to_pylist())


@pytest.mark.parametrize(("name", "file"), PUBLISHED)
def test_published_accuracy(name: str, file: str, shared: Path, cifar10: tuple[Tensor, Tensor]) -> None:
    model = build(f"prunus:{name}", weights=shared / f"models/cifar10/{file}.safetensors")
    images, labels = cifar10
    with torch.no_grad():
        correct = sum(
            (model.module.eval()(model.preprocess(x)).argmax(1) == y).sum().item()
            for x, y in zip(images.split(100), labels.split(100), strict=True)
        )
    assert correct / IMAGES >= 0.89  # 91.7 to 93.4 % of all 10,000; two standard deviations below


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return resnet20().state_dict()


def same(module: nn.Module, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, expected[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_every_format(name: str, tmp_path: Path) -> None:
    path, given = tmp_path / name, state()
    if path.suffix == ".safetensors":
        save_file(given, path)
    else:
        torch.save(given, path)
    assert same(build("prunus:resnet20", weights=path, seed=5).module, given)


def test_containers_and_wrappers(tmp_path: Path) -> None:
    given = state()
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in given.items()}}, tmp_path / "w.pth")
    assert same(build("prunus:resnet20", weights=tmp_path / "w.pth").module, given)


def test_half_precision_is_cast(tmp_path: Path) -> None:
    given = {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    save_file(given, tmp_path / "w.safetensors")
    module = build("prunus:resnet20", weights=tmp_path / "w.safetensors").module
    assert module.conv1.weight.dtype == torch.float32
    assert torch.equal(module.conv1.weight, given["conv1.weight"].float())


def misfit(path: Path) -> str:
    """The message for weights that do not fit; the module must be as it was."""
    module = resnet20()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(FileError) as caught:
        load_weights_(module, path)
    assert same(module, before)
    return str(caught.value)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    given = state()
    del given["conv1.weight"]
    given["linear.bias"] = torch.zeros(7)
    given["head.weight"] = torch.zeros(1)
    save_file(given, tmp_path / "w.safetensors")
    message = misfit(tmp_path / "w.safetensors")
    assert "1 missing: conv1.weight" in message
    assert "1 unexpected: head.weight" in message
    assert "1 of another shape: linear.bias (file (7,), model (10,))" in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    save_file({f"x{n}": torch.zeros(1) for n in range(9)}, tmp_path / "w.safetensors")
    message = misfit(tmp_path / "w.safetensors")
    assert "9 unexpected: x0, x1, x2, x3, ..." in message
    assert "x4" not in message


def test_a_pruned_file_says_how_it_is_loaded(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors", {"prunus": "{}"})
    assert "prunus.load(path, factory)" in misfit(tmp_path / "w.safetensors")


def test_damaged_files(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "not a complete safetensors file" in misfit(tmp_path / "w.safetensors")
    (tmp_path / "w.pt").write_bytes(b"no archive")
    assert "cannot be read as plain tensors" in misfit(tmp_path / "w.pt")
    torch.save({"weights": [1, 2]}, tmp_path / "list.pt")
    assert "holds no state dict" in misfit(tmp_path / "list.pt")
    assert "no file of weights" in misfit(tmp_path / "absent.pt")
    (tmp_path / "w.bin").write_bytes(b"")
    assert "not from '.bin'" in misfit(tmp_path / "w.bin")


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")  # a pickled module: loading it would run its class
    assert "runs no code from a file" in misfit(tmp_path / "module.pt")
