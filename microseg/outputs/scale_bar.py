"""Scale bars of pictures."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = ["bar_length", "draw_scale_bar"]

_LONGEST = 0.25  # of the picture's width
_SMALLEST = 120  # pixels of the picture's width, below which there is no space for a bar


def bar_length(microns: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten that is at most that length, in microns."""
    power = 10.0 ** np.floor(np.log10(microns))
    return float(max(step * power for step in (1, 2, 5) if step * power <= microns * (1 + 1e-9)))


@cache
def _font_file() -> Path:
    """That of matplotlib, which has µ; Pillow's own font has not."""
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def draw_scale_bar(picture: npt.NDArray[np.uint8], mpp: float) -> npt.NDArray[np.uint8]:
    """Draw a scale bar with its length into the lower left corner.

    Args:
        picture: RGB, 0..255.
        mpp: Microns per pixel of the picture.

    Shape:
        (H, W, 3) → (H, W, 3)

    Returns:
        The picture; without a bar if it is too small for one.
    """
    height, width = picture.shape[:2]
    if width < _SMALLEST or height < _SMALLEST // 2:
        return picture
    microns = bar_length(_LONGEST * width * mpp)
    bar = max(1, round(microns / mpp))
    text = f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} µm"
    font = ImageFont.truetype(_font_file(), size=max(11, width // 60))
    drawn = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawn)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    gap, thick = max(4, width // 200), max(3, width // 300)
    box = (0, round(height - bottom + top - thick - 3 * gap), round(max(bar, right - left) + 2 * gap), height)
    pen.rectangle(box, (255, 255, 255))
    pen.text((gap - left, box[1] + gap - top), text, fill=(0, 0, 0), font=font)
    pen.rectangle((gap, height - gap - thick, gap + bar - 1, height - gap - 1), (0, 0, 0))
    return np.asarray(drawn, np.uint8)
