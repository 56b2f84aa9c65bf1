"""What developers call: load a segmenter, segment, train, adapt."""

from microseg.sdk.fitness import Check, check_fitness
from microseg.sdk.fitting import Fitted, adapt, train
from microseg.sdk.processes import Progress
from microseg.sdk.segmenter import Segmenter, version_provenance

__all__ = ["Check", "Fitted", "Progress", "Segmenter", "adapt", "check_fitness", "train", "version_provenance"]
