"""The base of adaptation methods, which are the extension point ``microseg.adaptation_methods``.

To add one, write a subclass of `AdaptationMethod` and declare it in ``pyproject.toml``; ``adapt.method`` selects it by
its name::

    [project.entry-points."microseg.adaptation_methods"]
    my_method = "my_package:MyMethod"
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from microseg.config.training_params import AdaptSettings
from microseg.datasets.decoded import DecodedFiles
from microseg.datasets.sampling import CropSampler, Sample
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.domain_shift import TargetLab
from microseg.training.method import TrainingMethod, require_masks

__all__ = ["AdaptationMethod"]


class AdaptationMethod(TrainingMethod):
    """Base class of adaptation methods: training with labelled source labs and unlabelled target labs.

    Args:
        network: Segmenter in use, trained on the source labs; it is changed.
        source: Labelled images of the source labs; empty with ``adapt.source: none``.
        targets: Target labs, as image windows at the model's scale. Their masks are not available.
        settings: Section ``adapt`` of the parameters.
        crop: Side of a crop, in pixels at the model's scale.
        batch: Crops of the source labs, and of the target labs, in a step.
        seed: Seed of crops and color changes.
        folder: Folder for files of the method that last for the training.

    Attributes:
        sampler: Makes samplers of these crops; it takes the samples and the ``seed``.

    Raises:
        TrainingError: A source image has no mask.
    """

    settings: AdaptSettings
    needs_source: ClassVar[bool] = True
    """Whether the method trains on source images; otherwise it can also be used with ``adapt.source: none``."""

    def __init__(
        self,
        network: PyramidSegmenter,
        source: Sequence[Sample],
        targets: Sequence[TargetLab],
        settings: AdaptSettings,
        *,
        crop: int,
        batch: int,
        seed: int,
        folder: Path,
    ) -> None:
        super().__init__(network, settings)
        require_masks(source)
        self.targets, self.folder, self.seed = tuple(targets), folder, seed
        self.crop_size, self.crops_per_step = crop, batch
        self.sampler = partial(
            CropSampler,
            size=crop,
            batch=batch,
            zoom=settings.zoom_range,
            classes=len(network.config.classes),
            decoded=DecodedFiles(folder / "decoded"),
        )
