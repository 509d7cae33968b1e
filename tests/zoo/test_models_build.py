"""Any model by its name, and one clear message for every name that is none."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prunus.core import FileError, InputError, MissingExtraError, UnknownNameError
from prunus.data import Preprocess
from prunus.zoo import build
from prunus.zoo.sources import from_transformers

OWN = """
from torch import nn

def net(classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))

def plain():
    return nn.Linear(2, 2)

def wrong():
    return 3

def needs(width):
    return nn.Linear(width, 1)
"""


def needed(library: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_seed_fixes_the_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second, other = (build("prunus:resnet20", seed=s).module for s in (4, 4, 5))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_the_factory_builds_the_same_architecture_again() -> None:
    model = build("prunus:resnet20", classes=7)
    again = model.factory()
    assert again is not model.module
    shapes = {k: v.shape for k, v in model.module.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    assert again.linear.out_features == 7


def test_examples_are_the_same_every_time() -> None:
    model = build("prunus:digits_net")
    assert model.example(3).shape == (3, 1, 8, 8)
    assert torch.equal(model.example(3), model.example(3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet57", "Did you mean 'prunus:resnet5"),
        ("prunus:resnet57", "Did you mean 'resnet56'"),
        ("torchvison:resnet18", "Expected prunus:NAME, torchvision:NAME"),
        ("prunus:", "is not a model"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        build(spec)


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18", "transformers:{}"])
def test_a_missing_library_says_how_to_install_it(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["BertModel"]}))
    real = importlib.util.find_spec
    gone = {"torchvision", "timm", "transformers"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a))
    library = spec.partition(":")[0]
    with pytest.raises(MissingExtraError, match=rf'pip install "prunus\[{library}\]"'):
        build(spec.format(path))


def test_a_file_of_the_users_own(own: Path) -> None:
    model = build(f"{own}:net", classes=6)
    assert model.module[1].out_features == 6
    assert model.input_shape is None
    assert model.preprocess == Preprocess()
    assert str(own.parent) not in sys.path
    with pytest.raises(InputError, match="give one .--input"):
        model.example()


@pytest.mark.parametrize(
    ("name", "message"),
    [("nett", "Did you mean 'net'"), ("wrong", "returned int"), ("needs", "without arguments"), ("nn_", "no function")],
)
def test_factories_that_cannot_be_used(own: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(f"{own}:{name}")


def test_files_that_cannot_be_used(own: Path) -> None:
    with pytest.raises(InputError, match="own.py:factory"):
        build(str(own))
    with pytest.raises(FileError, match="no Python file"):
        build("absent.py:net")
    with pytest.raises(InputError, match="takes no argument 'classes'"):
        build(f"{own}:plain", classes=3)
    own.write_text("import nothing_of_this_name")
    with pytest.raises(InputError, match="ModuleNotFoundError"):
        build(f"{own}:net")


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("{", "", "not a JSON file"),
        ("[]", "", "holds no configuration"),
        ('{"hidden_size": 8}', "", "does not name the model's class"),
        ('{"A": {"config_kwargs": {}}, "B": {"config_kwargs": {}}}', "", "holds 2 configurations; choose one"),
        ('{"A": {"config_kwargs": {}}, "Bert": {"config_kwargs": {}}}', "#Bart", "Did you mean 'Bert'"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path: Path, text: str, key: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        from_transformers(f"{path}{key}", None)
    with pytest.raises(FileError, match="no configuration file"):
        build("transformers:absent.json")


@needed("torchvision")
def test_torchvision() -> None:
    model = build("torchvision:resnet18", classes=5)
    assert model.input_shape == (3, 224, 224)
    assert model.preprocess.mean == (0.485, 0.456, 0.406)
    assert model.preprocess.crop == 224 / 256
    assert sum(p.numel() for p in model.module.parameters()) == 11_689_512 - 995 * 513
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        build("torchvision:resnet19")


@needed("timm")
def test_timm(shared: Path) -> None:
    weights = shared / "models/imagenet/efficientnet_lite0.safetensors"  # some of it stored in half precision
    model = build("timm:tf_efficientnet_lite0", weights=weights)
    assert model.input_shape == (3, 224, 224)
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet26d'"):
        build("timm:resnet266d")


@needed("transformers")
def test_transformers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings |= {"image_size": 32, "patch_size": 8}
    path.write_text(json.dumps({"architectures": ["ViTForImageClassification"], **settings}))
    model = build(f"transformers:{path}", classes=3)
    assert model.input_shape == (3, 32, 32)
    assert model.module(model.example(2)).logits.shape == (2, 3)
    path.write_text(json.dumps({"architectures": ["VitForImageClassification"], **settings}))
    with pytest.raises(UnknownNameError, match="Did you mean 'ViTForImageClassification'"):
        build(f"transformers:{path}")
