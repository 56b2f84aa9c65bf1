"""What developers call: load a segmenter, segment, train, adapt."""

from microseg.sdk.fitting import Fitted, adapt, train
from microseg.sdk.processes import Progress
from microseg.sdk.segmenter import Segmenter, version_provenance

__all__ = ["Fitted", "Progress", "Segmenter", "adapt", "train", "version_provenance"]
