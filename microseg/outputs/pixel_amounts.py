"""Amounts that are measured at each pixel, such as stains or the intensity of channels: sums of them over objects."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["QUANTITIES", "Intensities", "PixelAmounts", "split_column"]


QUANTITIES = ("od", "intensity")
"""Quantities in names of columns."""


def split_column(column: str) -> tuple[str, str, str, str] | None:
    """What a column of amounts has: ``ring_`` or nothing, the name, the quantity, ``mean`` or ``std``.

    Returns:
        None for other columns.
    """
    found = re.fullmatch(rf"(ring_)?(.+)_({'|'.join(QUANTITIES)})_(mean|std)", column)
    return None if found is None else (found[1] or "", found[2], found[3], found[4])


@dataclass(frozen=True)
class PixelAmounts(ABC):
    """Amounts to measure in objects, and in a ring around each.

    Attributes:
        names: What is measured, by name.
        ring: Width of the ring around an object, in pixels of the mask.
        quantity: What the amounts are, in names of columns.
    """

    quantity: ClassVar[str]

    names: tuple[str, ...]
    ring: int

    @abstractmethod
    def amounts(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Amounts at each pixel.

        Args:
            image: RGB, 0..255.

        Shape:
            (..., 3) → (..., len(names))
        """

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table: mean and standard deviation of each amount, in the object and in the ring."""
        places = [place.format(name) for name in self.names for place in ("{}", "ring_{}")]
        return tuple(f"{place}_{self.quantity}_{value}" for place in places for value in ("mean", "std"))

    @property
    def sums(self) -> int:
        """Number of sums of each object, see `sum_objects`."""
        return 1 + 4 * len(self.names)

    def sum_objects(
        self,
        labels: npt.NDArray[np.int32],
        reached: npt.NDArray[np.int32],
        count: int,
        image: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.float64]:
        """Sum over the pixels of each object and of the ring around it.

        Args:
            labels: Number of the object at each pixel, 0 where there is none.
            reached: The same, with each object's ring.
            count: Number of objects.
            image: RGB, 0..255.

        Shape:
            labels and reached (h, W), image (h, W, 3) → (count, sums)

        Returns:
            Pixels of the ring; and for each name the sum of its amount in the object, the sum of the squares, and both
            in the ring.
        """
        sums = np.zeros((count, self.sums))
        where = np.flatnonzero(reached)
        numbers, inside = reached.ravel()[where] - 1, labels.ravel()[where] > 0
        amounts = self.amounts(image.reshape(-1, 3)[where]).astype(np.float64)  # (P, names)
        sums[:, 0] = np.bincount(numbers[~inside], minlength=count)
        for place in range(len(self.names)):
            for offset, chosen in ((1, inside), (3, ~inside)):
                values = amounts[chosen, place]
                sums[:, 4 * place + offset] = np.bincount(numbers[chosen], values, minlength=count)
                sums[:, 4 * place + offset + 1] = np.bincount(numbers[chosen], values * values, minlength=count)
        return sums


class Intensities(PixelAmounts):
    """Intensity of the channels that are in the place of red, green and blue: 0 to 1 of the range of each."""

    quantity = "intensity"

    def amounts(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Intensity of each channel."""
        return image[..., : len(self.names)].astype(np.float32) / np.float32(255)
