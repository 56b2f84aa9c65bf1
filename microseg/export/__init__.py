"""The network for other programs: exported graphs, and a package for the bioimage.io model zoo."""

from microseg.export.bioimageio import write_bioimageio
from microseg.export.formats import FORMATS, export_model
from microseg.export.graph import Exported, example_tile, tile_probabilities

__all__ = ["FORMATS", "Exported", "example_tile", "export_model", "tile_probabilities", "write_bioimageio"]
