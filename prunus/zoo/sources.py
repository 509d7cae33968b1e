"""Where models come from beside this zoo: torchvision, timm, transformers, and the user's own file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from prunus.core import FileError, InputError, UnknownNameError, did_you_mean, missing_extra
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.data.preprocess import Preprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Source:
    """How a model is built: factory, preprocessing (or how to read it off the model), the shape of one input."""

    factory: Callable[[], nn.Module]
    preprocess: Preprocess | Callable[[nn.Module], Preprocess]
    input_shape: tuple[int, ...] | None = None


def from_torchvision(name: str, classes: int | None) -> Source:
    """A model of torchvision, built without weights, with the preprocessing of its published weights."""
    library = _library("torchvision").models
    _known("torchvision", name, library.list_models())
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(library.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = True
    if classes is not None:
        options["num_classes"] = classes
    return Source(lambda: library.get_model(name, **options), _torchvision_preprocess(library, name))


def _torchvision_preprocess(library: Any, name: str) -> Preprocess:
    """From the transforms that torchvision declares with the weights; ImageNet's where it declares none."""
    size, crop, mean, std = 224, 224 / 256, IMAGENET_MEAN, IMAGENET_STD
    transforms = library.get_model_weights(name).DEFAULT.transforms()
    mean, std = getattr(transforms, "mean", mean), getattr(transforms, "std", std)
    if hasattr(transforms, "crop_size"):
        size = transforms.crop_size[0]
        crop = min(1.0, size / transforms.resize_size[0])
    return Preprocess(tuple(mean), tuple(std), size=(size, size), channels=3, crop=crop)


def from_timm(name: str, classes: int | None) -> Source:
    """A model of timm, built without weights, with the preprocessing timm declares for it."""
    timm = _library("timm")
    _known("timm", name.partition(".")[0], timm.list_models())
    options = {} if classes is None else {"num_classes": classes}

    def preprocess(module: nn.Module) -> Preprocess:
        data = timm.data.resolve_data_config(model=module)
        channels, height, width = data["input_size"]
        crop = min(1.0, float(data["crop_pct"]))
        return Preprocess(data["mean"], data["std"], size=(height, width), channels=channels, crop=crop)

    return Source(lambda: timm.create_model(name, pretrained=False, **options), preprocess)


def from_transformers(name: str, classes: int | None) -> Source:
    """A model of transformers with random weights, from its JSON configuration.

    The file is what ``save_pretrained`` writes (``architectures`` names the class), or
    ``{"model_class": ..., "config_class": ..., "config_kwargs": {...}}``, or a mapping of class names to such entries,
    one of them chosen with ``#NAME``.
    """
    file, _, key = name.partition("#")
    config, model_class = _read_config(Path(file), key)
    library = _library("transformers")
    if not hasattr(library, model_class):
        hint = did_you_mean(model_class, dir(library))
        raise UnknownNameError(f"{file}: transformers has no model class '{model_class}'.{hint}")
    cls = getattr(library, model_class)
    settings = dict(config)
    if classes is not None:
        settings["num_labels"] = classes
    made = cls.config_class(**settings)
    size, channels = getattr(made, "image_size", None), getattr(made, "num_channels", 3)
    pair = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    preprocess = Preprocess((0.5,), (0.5,), size=pair, channels=channels)
    return Source(lambda: cls(cls.config_class(**settings)), preprocess, (channels, *pair) if pair else None)


def _read_config(path: Path, key: str) -> tuple[dict[str, Any], str]:
    """The settings of a transformers configuration file and the name of the model's class."""
    content = _read_json(path)
    if key or _is_catalogue(content):
        if not key and len(content) > 1:
            raise InputError(
                f"{path} holds {len(content)} configurations; choose one, as in {path}#{next(iter(content))}."
            )
        key = key or next(iter(content))
        if key not in content:
            raise UnknownNameError(f"{path} holds no configuration '{key}'.{did_you_mean(key, content)}")
        content = {"model_class": key, **content[key]}
    named = content.get("model_class") or next(iter(content.get("architectures") or []), None)
    if named is None:
        raise FileError(f'{path} does not name the model\'s class; add "architectures": ["...ForImageClassification"].')
    return dict(content["config_kwargs"]) if "config_kwargs" in content else content, str(named)


def _is_catalogue(content: Mapping[str, Any]) -> bool:
    return all(isinstance(v, dict) and "config_kwargs" in v for v in content.values())


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileError(f"there is no configuration file at {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FileError(f"{path} is not a JSON file ({error}).") from None
    if not isinstance(content, dict) or not content:
        raise FileError(f"{path} holds no configuration (a JSON object with the settings of one model).")
    return content


def from_file(spec: str, classes: int | None) -> Source:
    """The network returned by a function of the user's own Python file; the file is run, with its folder importable."""
    file, _, name = spec.rpartition(":")
    module = _run_file(Path(file))
    if not callable(getattr(module, name, None)):
        public = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise UnknownNameError(f"{file} defines no function '{name}'.{did_you_mean(name, public)}")
    function = getattr(module, name)
    options = {} if classes is None else {_classes_argument(function, spec): classes}
    _check_callable(function, options, spec)

    def factory() -> nn.Module:
        try:
            made = function(**options)
        except Exception as error:  # the user's own code
            raise InputError(f"{spec} raised {type(error).__name__} when it was called: {error}") from error
        if not isinstance(made, nn.Module):
            raise InputError(f"{spec} returned {type(made).__name__}; expected a torch.nn.Module.")
        return made

    return Source(factory, Preprocess())


def _check_callable(function: Callable[..., Any], options: Mapping[str, Any], spec: str) -> None:
    """Raise `InputError` when `function` needs arguments beside `options`."""
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        given = f"with {', '.join(options)} alone" if options else "without arguments"
        raise InputError(f"{spec} is called {given}: {error}. Give every other argument a default.") from None


def _classes_argument(function: Callable[..., Any], spec: str) -> str:
    parameters = inspect.signature(function).parameters
    for name in ("classes", "num_classes"):
        if name in parameters:
            return name
    raise InputError(f"{spec} takes no argument 'classes', so the number of classes cannot be set from outside.")


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileError(f"there is no Python file at {path}.")
    name = f"prunus_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise FileError(f"{path} cannot be imported as a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} raised {type(error).__name__} when it was imported: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _library(name: str) -> Any:
    """Import an optional library, or raise the error that says how to install it."""
    if importlib.util.find_spec(name) is None:
        raise missing_extra(name, name)
    declare_torchvision_operators()
    return importlib.import_module(name)


def _known(library: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        raise UnknownNameError(f"{library} has no model '{name}'.{did_you_mean(name, names)}")
