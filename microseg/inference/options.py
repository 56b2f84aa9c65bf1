"""How images are segmented, where nothing else is said."""

__all__ = ["SLIDE_MEGAPIXELS"]

SLIDE_MEGAPIXELS = 16.0
"""Images above this are segmented as slides: as a whole they would take about 60 bytes a pixel."""
