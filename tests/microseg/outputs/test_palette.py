import itertools

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2lab

from microseg.outputs.palette import class_color, color_table

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
VISION = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def seen(colors: npt.NDArray[np.float64], vision: str) -> npt.NDArray[np.float64]:
    """CIELAB of sRGB colors in 0..1 as someone with that vision sees them."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(rgb2lab(srgb[None])[0])


def test_the_first_seven_colors_differ_for_everyone() -> None:
    colors = np.array([class_color(index) for index in range(1, 8)]) / 255
    for vision in VISION:
        for one, other in itertools.combinations(seen(colors, vision), 2):
            assert np.linalg.norm(one - other) > 30, vision


def test_many_classes_have_colors_of_their_own() -> None:
    assert len({class_color(index) for index in range(1, 22)}) == 21


def test_background_is_black_and_ignored_is_gray() -> None:
    table = color_table()
    assert table.shape == (256, 3)
    assert table[0].tolist() == [0, 0, 0]
    assert table[255].tolist() == [128, 128, 128]
