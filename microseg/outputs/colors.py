"""Colors of the classes in pictures, label images and outlines."""

import functools

import numpy as np
import numpy.typing as npt

__all__ = ["Color", "class_color", "color_table"]

Color = tuple[int, int, int]

# Far from hematoxylin, eosin and diaminobenzidine first. Any two stay at least 30 CIELAB units apart for normal,
# protan, deutan and tritan vision (Machado et al. 2009); Okabe and Ito's well-known colors come as near as 16.
_COLORS: tuple[Color, ...] = (
    (10, 255, 145),  # spring green
    (228, 122, 0),  # orange
    (76, 163, 255),  # sky blue
    (255, 255, 0),  # yellow
    (220, 160, 188),  # pink
    (8, 56, 202),  # blue
    (124, 46, 23),  # brown
)
_IGNORED: Color = (128, 128, 128)


def class_color(index: int) -> Color:
    """Color of a class.

    Args:
        index: Class index in a mask. 0, the background, is black; 255, ignored, is gray.

    Returns:
        Red, green and blue, 0..255. After seven classes the colors are repeated, lighter, then darker.
    """
    if index == 0:
        return (0, 0, 0)
    if index == 255:
        return _IGNORED
    shade, number = divmod(index - 1, len(_COLORS))
    towards = (None, 255, 0)[shade % 3]
    red, green, blue = (c if towards is None else (c + towards) // 2 for c in _COLORS[number])
    return red, green, blue


@functools.cache
def color_table() -> npt.NDArray[np.uint8]:
    """Colors of all mask values; read-only.

    Shape:
        (256, 3)
    """
    table = np.array([class_color(index) for index in range(256)], np.uint8)
    table.setflags(write=False)
    return table
