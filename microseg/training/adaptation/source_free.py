"""Adaptation without source images, where these may not leave their hospital: from model and target images alone."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from microseg.config.params import AdaptSettings
from microseg.datasets.sampling import Crops, CropSampler, Sample, step_generator
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.domain_shift import TargetLab
from microseg.training.adaptation.method import AdaptationMethod
from microseg.training.color_augmentation import jitter_color

__all__ = ["SourceFreeMethod"]


class SourceFreeMethod(AdaptationMethod):
    """Base class of methods that train on target crops alone; source images are not kept, even where some are given.

    Attributes:
        target: Sampler of target crops, without masks.
    """

    needs_source = False

    def __init__(
        self,
        network: PyramidSegmenter,
        source: Sequence[Sample],  # noqa: ARG002 (not used)
        targets: Sequence[TargetLab],
        settings: AdaptSettings,
        **options: Any,
    ) -> None:
        super().__init__(network, (), targets, settings, **options)
        self._sampler = partial(CropSampler, size=self.crop_size, batch=self.crops_per_step, zoom=settings.zoom_range)
        self.target = self._sampler([Sample(it) for lab in targets for it in lab.windows], seed=self.seed + 1)

    def batch(self, step: int, *, rank: int, world: int) -> Crops:
        """Target crops with color jitter."""
        crops = self.target.draw(step, rank=rank, world=world)
        generator = step_generator(self.seed, step, rank)
        return Crops(jitter_color(crops.images, self.settings.target_color_jitter, generator), crops.masks)
