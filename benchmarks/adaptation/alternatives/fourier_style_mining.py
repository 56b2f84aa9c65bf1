"""SFDA-FSM: source-free, source-like images from the stored statistics, and consistency with these."""

import copy
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.adaptation.alternatives.image_transfer import swap_amplitudes
from benchmarks.adaptation.alternatives.uncertain_pseudo_labels import image_dice
from microseg.datasets.sampling import step_generator
from microseg.models.network import PyramidSegmenter
from microseg.training.adaptation.source_free import SourceFreeMethod
from microseg.training.method import Losses

__all__ = ["FourierStyleMining", "compactness", "mine_styles", "statistics_gap"]

_STYLES = 4  # crops that styles are mined from
_MINING_STEPS = 40
_CONTENT = 0.5  # weight of the features, against that of the statistics
_BETA = 0.05  # half the side of the swapped square of low frequencies, relative to the crop's
_DISTILLATION, _CONTRAST = 0.1, 0.01  # weights


class FourierStyleMining(SourceFreeMethod):
    """Segment target crops and their source-like versions alike, by the labels that the first network gives the latter.

    Mining: crops are optimized until their batch statistics are those that the network stores of the source, while
    their features stay; target crops then get the low frequencies' amplitudes of a mined crop. Training: Dice to the
    pseudo-label, weighted by how compact its objects are (compact-aware domain consistency); and equal distances
    between the features of rotated views in both domains, near features of both (contrastive domain distillation).

    Reference:
        Yang et al., "Source free domain adaptation for medical image segmentation with Fourier style mining", Medical
        Image Analysis 2022.
    Deviation:
        Styles are mined from a few crops, jointly, in 40 steps instead of 100 for each image: only the amplitudes of
        their low frequencies are used. Compactness is the mean over the objects of a crop, as there are many, instead
        of that of one organ. Rotations are by quarter turns, and crops are not changed in color.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        base = copy.deepcopy(self.network).eval().requires_grad_(False)
        self._base = (base,)  # in a tuple, so that it is not a submodule
        device = next(base.parameters()).device
        count = -(-_STYLES // self.crops_per_step)
        crops = torch.cat([self.target.draw(number).images for number in range(count)])[:_STYLES].to(device)
        self.styles = mine_styles(base, crops).cpu()

    def batch(self, step: int, *, rank: int, world: int) -> tuple[Tensor, Tensor, int]:  # type: ignore[override]
        """Target crops, the same source-like, and the quarter turns of their other view."""
        generator = step_generator(self.seed, step, rank)
        target = self.target.draw(step, rank=rank, world=world).images
        picks = torch.randint(len(self.styles), (len(target),), generator=generator)
        turns = int(torch.randint(1, 4, (), generator=generator))
        return swap_amplitudes(target, self.styles[picks], _BETA), target, turns

    def forward(self, batch: tuple[Tensor, Tensor, int], progress: float) -> Losses:  # noqa: ARG002
        """Dice of both domains and views to the pseudo-labels, and the two losses on features."""
        source_like, target, turns = batch
        labels = self.pseudo_labels(source_like)
        weights = compactness(labels).to(labels.device)
        dice, features = [], []
        for images in (source_like, target):
            for turned in (0, turns):
                found = self.network.features(torch.rot90(images, turned, (2, 3)))
                probabilities = self.network.head.probabilities(found.logits)
                dice.append((weights * (1 - image_dice(probabilities, torch.rot90(labels, turned, (1, 2))))).mean())
                features.append(found.pyramid)
        source, source_turned, target_features, target_turned = features
        distance = functional.mse_loss
        own = distance(source, source_turned)
        parts = {
            "pseudo_labels": torch.stack(dice).sum(),
            "distillation": _DISTILLATION * distance(own, distance(target_features, target_turned)),
            "contrast": _CONTRAST
            * (distance(source, target_features) + distance(distance(source, target_turned), own)),
        }
        total = torch.stack(list(parts.values())).sum()
        return {"total": total, **{name: value.detach() for name, value in parts.items()}}

    @torch.no_grad()
    def pseudo_labels(self, source_like: Tensor) -> Tensor:
        """Labels of source-like crops by the network in use: (B, 3, S, S) → (B, S, S)."""
        base = self._base[0].to(source_like.device)
        return base.head.probabilities(base(source_like)).argmax(1)


def mine_styles(network: PyramidSegmenter, crops: Tensor) -> Tensor:
    """Optimize crops until their batch statistics are those that the network stores: (N, 3, S, S) → (N, 3, S, S).

    Args:
        network: Network in use, in evaluation mode and without gradients.
        crops: Crops of the target lab.
    """
    with torch.no_grad():
        content = network.features(crops)
    images = nn.Parameter(crops.clone())
    optimizer = torch.optim.Adam([images], lr=0.01, betas=(0.5, 0.9))
    for _ in range(_MINING_STEPS):
        gap, found = statistics_gap(network, images)
        pairs = [(found.pyramid, content.pyramid), *zip(found.decoder, content.decoder, strict=True)]
        loss = gap + _CONTENT * torch.stack([functional.mse_loss(one, other) for one, other in pairs]).sum()
        (images.grad,) = torch.autograd.grad(loss, [images])
        optimizer.step()
    return images.detach().clamp(0, 1)


def statistics_gap(network: PyramidSegmenter, images: Tensor) -> tuple[Tensor, Any]:
    """Distance of the batch statistics of images to the stored ones, and the features of the images.

    It is summed over the first half of the normalization layers, without the first one.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    gaps: list[Tensor] = []

    def measure(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        assert layer.running_var is not None
        assert layer.running_mean is not None
        gaps.append((layer.running_var - variance).norm() + (layer.running_mean - mean).norm())

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers[1 : max(2, len(layers) // 2)]]
    features = network.features(images)
    for hook in hooks:
        hook.remove()
    return torch.stack(gaps).sum(), features


def compactness(labels: Tensor) -> Tensor:
    """Mean of 4π·area / perimeter² over the objects of each image, at most 1 each; 1 without any: (B, H, W) → (B,).

    The perimeter is π/4 times the number of an object's outer pixel edges, which is right for a circle.
    """
    values = []
    for mask in labels.cpu().numpy() > 0:
        objects, count = ndimage.label(mask)
        inner = np.pad(objects, 1)
        edges = sum(np.roll(inner, *shift)[1:-1, 1:-1] != objects for shift in ((1, 0), (-1, 0), (1, 1), (-1, 1)))
        area = np.bincount(objects.ravel(), minlength=count + 1)[1:]
        perimeter = np.pi / 4 * np.bincount(objects.ravel(), np.ravel(edges), minlength=count + 1)[1:]
        values.append(float(np.minimum(1, 4 * np.pi * area / perimeter**2).mean()) if count else 1.0)
    return torch.tensor(values)
