"""Outputs of the network reduced on its device to what files need, and copied to the host while the device goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from microseg.errors import ModelError
from microseg.outputs.image_summary import ConfidenceSums

__all__ = ["Classified", "HostCopy", "classify", "not_finite"]


@dataclass(frozen=True)
class Classified:
    """Outputs of some images or blocks of one size, reduced on their device.

    Attributes:
        mask: Class indices, uint8.
        confidence: Highest probability in 255ths, uint8.
        interior: Of objects, in 255ths, uint8; None where objects are not separated.
        sums: Sum of the highest probabilities, and of the entropies in nats; float32.

    Shape:
        mask, confidence and interior (B, h, w), sums (B, 2)
    """

    mask: torch.Tensor
    confidence: torch.Tensor
    interior: torch.Tensor | None
    sums: torch.Tensor

    def host_sums(self, number: int, sums: torch.Tensor) -> ConfidenceSums:
        """Sums of one image, from a copy of ``sums`` on the host."""
        highest, entropy = sums[number].tolist()
        return ConfidenceSums(self.mask[number].numel(), highest, entropy)


@torch.inference_mode()
def classify(outputs: torch.Tensor, classes: int, interior: int | None) -> Classified:
    """Reduce outputs to classes and confidence; one pass over each channel, on any device.

    Args:
        outputs: Class probabilities, and the head's maps; NaN and infinity remain in the sums.
        classes: Number of classes K.
        interior: Channel of the interior; None where objects are not separated.

    Shape:
        outputs (B, K + M, h, w), float32
    """
    highest, mask = outputs[:, 0], None  # (B, h, w)
    entropy = _entropy(highest)
    for index in range(1, classes):
        other = outputs[:, index]
        greater = (other > highest).view(torch.uint8)  # the first of equal ones is kept
        mask = greater if mask is None else torch.maximum(mask, greater * index)
        highest = torch.maximum(highest, other)
        entropy = entropy + _entropy(other)
    if mask is None:
        mask = torch.zeros_like(highest, dtype=torch.uint8)
    total, inside = highest.sum((1, 2)), None
    if interior is not None:
        inside = _bytes(outputs[:, interior])
        total = total + 0 * outputs[:, interior].sum((1, 2))  # not finite where the interior is not
    return Classified(mask, _bytes(highest), inside, torch.stack([total, entropy], dim=1))


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    logarithms = probabilities.clamp_min(1e-12).log_()  # faster on a CPU than `torch.special.entr`
    return -logarithms.mul_(probabilities).sum((1, 2))


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return (values * 255).add_(0.5).clamp_(0, 255).to(torch.uint8)


class HostCopy:
    """Tensors on their way to the host: on CUDA into pinned memory, while the device continues.

    PyTorch keeps pinned memory, and gives it out again when it is not in use any more.

    Args:
        tensors: They may be on the host already.
    """

    def __init__(self, tensors: Sequence[torch.Tensor | None]) -> None:
        self._copies = [None if tensor is None else _start_copy(tensor) for tensor in tensors]
        devices = {tensor.device for tensor in tensors if tensor is not None and tensor.device.type == "cuda"}
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def wait(self) -> list[torch.Tensor | None]:
        """The copies; they have to be copied again where they are kept for long."""
        for event in self._events:
            event.synchronize()
        return self._copies


def _start_copy(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    return pinned


def not_finite(half: bool) -> ModelError:
    """The error of a network whose outputs are NaN or infinity: their largest value would be the background."""
    precision = "Set inference to 32 bits (half=False), or use" if half else "Use"
    return ModelError(
        "Expected finite probabilities from the network, got NaN or infinity: its weights or its arithmetic "
        f"fail on this image. {precision} another version of the model."
    )
