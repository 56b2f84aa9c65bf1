from .api.segmenter import Segmenter
from .api.training import adapt, train

__all__ = ["Segmenter", "adapt", "train"]
