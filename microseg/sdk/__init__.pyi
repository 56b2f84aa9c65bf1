from .fitness import Check, check_fitness
from .fitting import Fitted, adapt, train
from .processes import Progress
from .segmenter import Segmenter, version_provenance

__all__ = ["Check", "Fitted", "Progress", "Segmenter", "adapt", "check_fitness", "train", "version_provenance"]
