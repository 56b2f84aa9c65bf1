from .bioimageio import write_bioimageio
from .formats import FORMATS, export_model
from .graph import Exported, example_tile, tile_probabilities

__all__ = ["FORMATS", "Exported", "example_tile", "export_model", "tile_probabilities", "write_bioimageio"]
