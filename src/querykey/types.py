"""Axis names and the tensor types of public signatures.

queries   rows that are searched for
keys      rows of the candidate set
dim       width of an embedding
rows      any rows, if neither role applies
images    rows that are images, [channels, height, width] each
"""

from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

__all__ = [
    "FrozenRows",
    "Ids",
    "ImageIds",
    "ImageRows",
    "ImageSizes",
    "Images",
    "KeyIds",
    "KeyLabels",
    "Keys",
    "Labels",
    "Neighbours",
    "Numbers",
    "PairMask",
    "PerQuery",
    "Queries",
    "QueryIds",
    "QueryLabels",
    "Rows",
    "Scores",
    "TopScores",
    "ViewRows",
]

Queries = Float[Tensor, "queries dim"]
Keys = Float[Tensor, "keys dim"]
Rows = Float[Tensor, "rows dim"]
FrozenRows = Float[Tensor, "rows width"]
Scores = Float[Tensor, "queries keys"]
PairMask = Bool[Tensor, "queries keys"]
PerQuery = Float[Tensor, " queries"]
TopScores = Float[Tensor, "queries k"]
Neighbours = Int64[Tensor, "queries k"]
Ids = Int64[Tensor, " rows"]
QueryIds = Int64[Tensor, " queries"]
KeyIds = Int64[Tensor, " keys"]
Labels = Int64[Tensor, " rows"]
Numbers = Int64[Tensor, " numbers"]
QueryLabels = Int64[Tensor, " queries"]
KeyLabels = Int64[Tensor, " keys"]
Images = Shaped[Tensor, "images channels height width"]
ImageRows = Float[Tensor, "images channels height width"]
ImageIds = Int64[Tensor, " images"]
ImageSizes = Int64[Tensor, "images 2"]
ViewRows = Float[Tensor, "images channels size size"]
