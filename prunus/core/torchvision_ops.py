"""The two operators without which torchvision, timm and lightning cannot be imported on a CPU-only torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[torch.library.Library] = []  # a declaration lives as long as its Library object


def declare_torchvision_operators() -> tuple[str, ...]:
    """Declare ``torchvision::nms`` and ``::qnms`` where they are missing; the names of those it declared.

    The torchvision of PyPI is built against the CUDA build of torch: beside a CPU build its compiled part cannot be
    loaded, and its import fails on the two undeclared operators.  Call this before the first import of torchvision,
    timm or lightning.  A torchvision whose own operators load is left as it is; without torchvision nothing is done.

    >>> _ = declare_torchvision_operators()
    >>> declare_torchvision_operators()  # a second call finds nothing missing
    ()
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    if all(_declared(name) for name in _SCHEMAS):
        return ()
    _load_compiled_part(Path(spec.origin).parent)
    missing = tuple(name for name in _SCHEMAS if not _declared(name))
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(_SCHEMAS[name])
        _libraries.append(library)
    return missing


def _declared(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _load_compiled_part(folder: Path) -> None:
    """Load torchvision's own operators, as its import would; one that does not fit this torch is passed over."""
    for path in sorted(folder.glob("_C*")):
        if path.suffix in {".so", ".pyd", ".dylib"}:
            try:
                torch.ops.load_library(str(path))
            except OSError:
                continue
