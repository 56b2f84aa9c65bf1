from .sdk import Segmenter, adapt

__all__ = ["Segmenter", "adapt"]
