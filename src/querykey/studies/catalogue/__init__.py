"""The papers' studies by name; the modules `results_*` hold those of docs/results.md."""

from querykey.studies.catalogue.adapters import ADAPTER
from querykey.studies.catalogue.dictionaries import BATCH_NORM, DICTIONARY_SIZE, MOMENTUM
from querykey.studies.catalogue.heads import H_AGAINST_Z, PROJECTION_HEAD
from querykey.studies.catalogue.ladders import LADDER
from querykey.studies.catalogue.losses import LOSSES, TEMPERATURE
from querykey.studies.catalogue.memories import DRIFT, MEMORY_RATIO
from querykey.studies.catalogue.training import BATCH_AND_EPOCHS, FEW_LABELS, WIDTH
from querykey.studies.catalogue.views import AUGMENTATION_MATRIX, COLOUR_STRENGTH
from querykey.studies.engine.study import Study

__all__ = ["STUDIES"]

_ORDER = (
    AUGMENTATION_MATRIX, H_AGAINST_Z, PROJECTION_HEAD, DICTIONARY_SIZE, MOMENTUM, ADAPTER, LADDER,
    MEMORY_RATIO, DRIFT, BATCH_NORM, TEMPERATURE, LOSSES, BATCH_AND_EPOCHS, COLOUR_STRENGTH, WIDTH,
    FEW_LABELS,
)  # fmt: skip
STUDIES: dict[str, Study] = {study.name: study for study in _ORDER}
