"""An FC layer in forms that load elsewhere, each checked against the layer before it takes its name."""

from querykey.export.arrays import export_safetensors
from querykey.export.exported import Exported, Origin
from querykey.export.onnx_graph import export_onnx
from querykey.export.sentence_model import export_sentence_transformer

__all__ = ["Exported", "Origin", "export_onnx", "export_safetensors", "export_sentence_transformer"]
