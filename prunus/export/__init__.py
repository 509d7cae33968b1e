"""How does a network leave prunus?  As a verified file of another runtime."""

from prunus.export.onnx import to_onnx
from prunus.export.onnxruntime import onnxruntime_backend
from prunus.export.registry import exporters

__all__ = ["exporters", "onnxruntime_backend", "to_onnx"]
