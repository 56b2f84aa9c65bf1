"""The network as other programs take it: with a softmax at its end."""

from torch import Tensor, nn

from microseg.models.network import PyramidSegmenter

__all__ = ["SoftmaxNetwork"]


class SoftmaxNetwork(nn.Module):
    """The network followed by a softmax over classes.

    The pyramid pooling sees the whole tile, so the size of the tile is part of what is exported.

    Shape:
        (B, 3, T, T), float32, in 0..1 → (B, K, T, T), probabilities
    """

    def __init__(self, network: PyramidSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of each class at each pixel."""
        logits: Tensor = self.network(x)  # (B, K, T, T)
        return logits.softmax(dim=1)
