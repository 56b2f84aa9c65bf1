"""Self-training: shared batch-norm statistics, and target crops with pseudo-labels that are computed in rounds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from microseg.datasets.sampling import CropSampler
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.domain_shift import TargetLab
from microseg.training.adaptation.method import AdaptationMethod
from microseg.training.adaptation.normalization import (
    NormStatistics,
    freeze_statistics,
    mix_statistics,
    read_statistics,
    write_statistics,
)
from microseg.training.adaptation.pseudo_labels import pseudo_labelled_samples, write_pseudo_labels
from microseg.training.adaptation.source_priors import SourcePriors

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["SelfTraining", "shared_statistics"]


class SelfTraining(AdaptationMethod):
    """Base class of methods that train on pseudo-labels; a subclass calls `prepare_rounds` once it is initialized.

    Attributes:
        target: Sampler of target crops; their masks are the pseudo-labels of the current round.
        priors: Priors from the source labs; none by default.
    """

    target: CropSampler
    priors: SourcePriors = SourcePriors()
    _round = -1

    def prepare_rounds(self) -> None:
        """Keep the network in use as the first teacher, and share its batch-norm statistics with the target labs."""
        base = copy.deepcopy(self.network).requires_grad_(False)
        self._base: tuple[PyramidSegmenter] = (base,)  # in a tuple: not a submodule
        if self.settings.normalization == "shared":
            shared = shared_statistics(self.network, self.targets)
            for module in (self.network, *([self.averaged] if self.averaged is not None else [])):
                write_statistics(module, shared)

    def uses_pseudo_labels(self) -> bool:
        """Whether there are pseudo-labels at all."""
        return True

    def train(self, mode: bool = True) -> Self:
        """Set training mode; shared batch-norm statistics stay fixed."""
        super().train(mode)
        if self.settings.normalization == "shared":
            freeze_statistics(self.network)
        return self

    def data_round(self, progress: float) -> int:
        """Number of the round of pseudo-labels; 0 where there are none."""
        if not self.uses_pseudo_labels():
            return 0
        return min(self.settings.pseudo_label_rounds - 1, int(progress * self.settings.pseudo_label_rounds))

    def before_step(self, progress: float, fabric: Fabric) -> None:
        """Compute the pseudo-labels of the next round when it is due."""
        number = self.data_round(progress)
        if not self.uses_pseudo_labels() or number == self._round:
            return
        base = self._base[0].to(fabric.device)  # in every process: a subclass may need it there
        if fabric.is_global_zero:
            teacher = copy.deepcopy(self.result()).eval()
            write_pseudo_labels(self.targets, number, self.folder, base=base, teacher=teacher, priors=self.priors)
        fabric.barrier()
        self._round = number
        samples = pseudo_labelled_samples(self.targets, number, self.folder)
        self.target = self.sampler(samples, seed=self.seed + 2 + number)


def shared_statistics(network: PyramidSegmenter, targets: Sequence[TargetLab]) -> NormStatistics:
    """Statistics of the network, mixed with those of each target lab as far as these can be used; each lab with the
    same weight.
    """
    weights = [lab.shift.share / len(targets) for lab in targets]
    shared, total = read_statistics(network), 1 - sum(weights)
    for lab, weight in zip(targets, weights, strict=True):
        own = mix_statistics(lab.shift.statistics, lab.shift.zoomed_statistics, 0.5)
        total += weight
        shared = mix_statistics(shared, own, weight / total)
    return shared
