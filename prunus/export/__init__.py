"""How does a network leave prunus?  As a verified file of another runtime."""

from prunus.export.onnx import to_onnx
from prunus.export.onnxruntime import onnxruntime_backend
from prunus.export.openvino import openvino_backend
from prunus.export.registry import exporters
from prunus.export.sparse import to_sparse

__all__ = ["exporters", "onnxruntime_backend", "openvino_backend", "to_onnx", "to_sparse"]
