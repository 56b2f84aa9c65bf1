"""Overlays: a segmentation drawn over its image, and pictures side by side."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from microseg.annotations.index_masks import IGNORE
from microseg.errors import DataError
from microseg.outputs.palette import class_color, color_table

__all__ = ["draw_overlay", "draw_panel"]

Picture = npt.NDArray[np.uint8]

_FILL = 0.08  # opacity of the inside of objects: the stain must stay readable
_RIM = 0.6  # opacity of the dark rim beside each line, which makes it stand out on any stain
_BLUR = ImageFilter.Kernel((3, 3), (1, 4, 1, 4, 16, 4, 1, 4, 1))  # a Gaussian of 0.6 pixels
_GAP, _WHITE, _INK = 12, (255, 255, 255), (30, 30, 30)


def draw_overlay(image: Picture, mask: npt.NDArray[np.uint8], *, least: int = 900, most: int = 4096) -> Picture:
    """Draw the outlines of a mask, and a light fill, over its image.

    A line between two classes has the color of the one with the higher index.

    Args:
        image: RGB.
        mask: class indices; background and ignored pixels stay as they are.
        least: a smaller image is enlarged by a whole factor until its longest side has at least so many pixels.
        most: a larger image is reduced until its longest side has so many pixels, so that lines stay visible.

    Shape:
        image (H, W, 3), mask (H, W)

    Returns:
        RGB picture.

    Raises:
        DataError: when image and mask differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise DataError(f"Expected a mask of the image's size {image.shape[:2]}, got {mask.shape}: draw it on its own.")
    longest = max(mask.shape)
    factor = -(-least // longest) if longest < least else min(1.0, most / longest)
    size = (max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor)))
    objects = _resize_mask(np.where(mask == IGNORE, 0, mask).astype(np.uint8), size, factor)
    width = 1 + max(size) // 1600  # of a line, to each side of the border
    highest, lowest = _spread(objects, width, np.maximum), _spread(objects, width, np.minimum)
    line = (highest != lowest).astype(np.uint8) * 255  # (h, w)
    rim = _spread(line, 1, np.maximum)
    drawn = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    drawn.paste(_colored(objects), mask=Image.fromarray((objects > 0) * np.uint8(255 * _FILL)))
    drawn.paste((0, 0, 0), mask=_soft(rim).point([round(_RIM * value) for value in range(256)]))
    drawn.paste(_colored(highest), mask=_soft(line))
    return np.array(drawn, np.uint8)


def draw_panel(
    pictures: Sequence[Picture],
    titles: Sequence[str],
    *,
    classes: Sequence[str] = (),
    columns: int | None = None,
    height: int = 512,
) -> Picture:
    """Put pictures side by side, each below its title, with a legend of the classes.

    Overlays are best drawn at the size that they will have here: ``draw_overlay(…, least=height, most=height)``.

    Args:
        pictures: RGB, of any sizes.
        titles: one a picture.
        classes: names of the classes for the legend, background first; none for no legend.
        columns: pictures in a row; None: all in one.
        height: of each picture in the panel, in pixels; their proportions are kept.

    Shape:
        each (H, W, 3)

    Returns:
        One RGB picture, (h, w, 3).

    Raises:
        DataError: when there is no picture, or not one title for each.
    """
    if not pictures or len(pictures) != len(titles):
        raise DataError(f"Expected pictures and a title for each, got {len(pictures)} and {len(titles)} titles.")
    columns = min(columns or len(pictures), len(pictures))
    text = ImageFont.load_default(size=max(12, height // 22))
    line = round(text.getbbox("Ég")[3] * 1.5)
    scaled = [_to_height(picture, height) for picture in pictures]
    cells = [max(part.width, round(text.getlength(title))) for part, title in zip(scaled, titles, strict=True)]
    widths = [max(cells[column::columns]) for column in range(columns)]
    rows = -(-len(scaled) // columns)
    legend = line if len(classes) > 1 else 0
    size = (_GAP + sum(widths) + _GAP * columns, _GAP + rows * (line + height + _GAP) + legend)
    panel = Image.new("RGB", size, _WHITE)
    pen = ImageDraw.Draw(panel)
    for number, (part, title) in enumerate(zip(scaled, titles, strict=True)):
        row, column = divmod(number, columns)
        x, y = _GAP + sum(widths[:column]) + _GAP * column, _GAP + row * (line + height + _GAP)
        pen.text((x, y), title, fill=_INK, font=text)
        panel.paste(part, (x, y + line))
    x, y = _GAP, size[1] - legend - _GAP // 2
    for index, name in enumerate(classes[1:], start=1):
        pen.rectangle((x, y + line // 8, x + line // 2, y + line // 8 + line // 2), class_color(index), _INK)
        pen.text((x + line * 3 // 4, y), name, fill=_INK, font=text)
        x += line + line // 2 + round(text.getlength(name))
    return np.asarray(panel, np.uint8)


def _resize_mask(mask: npt.NDArray[np.uint8], size: tuple[int, int], factor: float) -> npt.NDArray[np.uint8]:
    """Resize a mask; enlarged borders are smooth, not stairs of pixels."""
    if factor <= 1:
        return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), np.uint8)
    best, strongest = np.zeros(size[::-1], np.uint8), np.full(size[::-1], 255, np.int16)
    shares = []
    for index in np.unique(mask[mask > 0]):
        picture = Image.fromarray((mask == index).astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        share = np.asarray(picture.filter(ImageFilter.GaussianBlur(max(1, 0.25 * factor))), np.uint8)
        strongest -= share  # what is left is the background's
        shares.append((index, share))
    for index, share in shares:
        stronger = share > strongest
        best[stronger], strongest[stronger] = index, share[stronger]
    return best


def _spread(values: npt.NDArray[np.uint8], radius: int, extreme: np.ufunc) -> npt.NDArray[np.uint8]:
    """Highest or lowest value in the square of that radius around each pixel."""
    for _ in range(radius):
        for axis in (0, 1):
            before = values.swapaxes(0, axis)
            values = values.copy()
            after = values.swapaxes(0, axis)
            extreme(after[1:], before[:-1], out=after[1:])
            extreme(after[:-1], before[1:], out=after[:-1])
    return values


def _colored(mask: npt.NDArray[np.uint8]) -> Image.Image:
    """A mask in the colors of its classes."""
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette(color_table().tobytes())
    return picture.convert("RGB")


def _soft(band: npt.NDArray[np.uint8]) -> Image.Image:
    """A band with soft edges."""
    return Image.fromarray(band).filter(_BLUR)


def _to_height(picture: Picture, height: int) -> Image.Image:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
