"""FC layers and backbones in forms that load elsewhere, each checked before it takes its name."""

from querykey.errors import require_train

require_train(__name__)

from querykey.export.arrays import export_safetensors
from querykey.export.backbone import (
    BackboneOrigin,
    ExportedBackbone,
    export_backbone_onnx,
    export_backbone_safetensors,
)
from querykey.export.exported import Exported, Origin
from querykey.export.onnx_graph import export_onnx
from querykey.export.sentence_model import export_sentence_transformer

__all__ = [
    "BackboneOrigin",
    "Exported",
    "ExportedBackbone",
    "Origin",
    "export_backbone_onnx",
    "export_backbone_safetensors",
    "export_onnx",
    "export_safetensors",
    "export_sentence_transformer",
]
