"""Overlays of a segmentation on its image, and panels of several pictures."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from microseg.annotations.index_masks import IGNORE
from microseg.errors import DataError
from microseg.outputs.colors import Color, class_color, color_table
from microseg.outputs.record import ImageInfo
from microseg.outputs.scale_bar import draw_scale_bar
from microseg.outputs.writers import MaskStrip, OutputWriter, Thumbnail

__all__ = ["OverlayWriter", "draw_overlay", "draw_panel"]

Picture = npt.NDArray[np.uint8]

_FILL = 0.08  # opacity of the inside of objects: the stain must stay readable
_RIM = 0.6  # opacity of the dark rim beside each line, which makes it stand out on any stain
_GAP, _WHITE, _INK = 12, (255, 255, 255), (30, 30, 30)
_LEAST = 500  # pixels of the longer side of an overlay file; drawing a larger one takes longer than segmenting
_PAINTED = 2**15  # pixels that are painted at once
_MOST, _SAMPLED = 4096, 2048  # longer side of a mask that is drawn as it is, and that larger ones are sampled to


class OverlayWriter(OutputWriter):
    """Writes the outlines of the objects drawn over the image, as JPEG; masks above 4096 pixels are reduced to 2048.

    The lines of a reduced mask are thin, and a scale bar is drawn where the pixel size is known.
    """

    suffix = ".overlay.jpg"

    def __init__(self, path: Path, image: ImageInfo, thumbnail: Thumbnail) -> None:
        super().__init__(path, image, thumbnail)
        height, width = image.mask_shape
        longest = max(height, width)
        self._every = 1 if longest <= _MOST else -(-longest // _SAMPLED)
        self._mask = np.zeros((-(-height // self._every), -(-width // self._every)), np.uint8)
        self.needs_labels = bool(image.instances)  # which objects touch cannot be told from the mask
        self._numbers = np.zeros(self._mask.shape, np.int32) if image.instances else None
        self._top = 0  # first row of the next numbers

    def add_strip(self, strip: MaskStrip) -> None:
        """Sample the rows of the mask."""
        first = -(-strip.top // self._every)
        rows = strip.mask[first * self._every - strip.top :: self._every, :: self._every]
        self._mask[first : first + len(rows)] = rows

    def add_labels(self, labels: npt.NDArray[np.int32], _count: int) -> None:
        """Sample the rows of the numbers of the objects."""
        assert self._numbers is not None, "asked for where objects are separated"
        first = -(-self._top // self._every)
        rows = labels[first * self._every - self._top :: self._every, :: self._every]
        self._numbers[first : first + len(rows)] = rows
        self._top += len(labels)

    def finish(self) -> None:
        """Read the picture of the image, draw and save."""
        height, width = self._mask.shape
        picture = self.thumbnail(max(height, width))
        if picture.shape[:2] != self._mask.shape:
            picture = np.asarray(Image.fromarray(picture).resize((width, height)), np.uint8)
        drawn = draw_overlay(picture, self._mask, self._numbers, least=_LEAST, thin=self._every > 1)
        if self.image.mpp is not None:
            drawn = draw_scale_bar(drawn, self.image.mpp * self.image.width / drawn.shape[1])
        from imagecodecs import jpeg8_encode  # the same bytes as Pillow's, which would copy the picture first

        self.path.write_bytes(jpeg8_encode(drawn, level=90, subsampling="444"))


def draw_overlay(
    image: Picture,
    mask: npt.NDArray[np.uint8],
    numbers: npt.NDArray[np.int32] | None = None,
    *,
    least: int = 900,
    most: int = 4096,
    thin: bool = False,
) -> Picture:
    """Draw the outlines of a mask, and a light fill, over its image.

    A line between two classes has the color of the class with the higher index.

    Args:
        image: RGB, 0..255.
        mask: Class indices; background and ignored pixels are not drawn.
        numbers: Number of the object at each pixel, 0 where there is none; objects that touch are divided by a line.
        least: Smallest longer side of the picture in pixels; a smaller image is enlarged by a whole factor.
        most: Largest longer side of the picture in pixels; a larger image is reduced, so that lines stay visible.
        thin: Whether lines are one pixel wide, inside of the objects: many small ones do not hide the tissue then.

    Shape:
        image (H, W, 3), mask and numbers (H, W)

    Returns:
        RGB picture, (h, w, 3).

    Raises:
        DataError: Image and mask differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise DataError(f"Expected a mask of the image's size {image.shape[:2]}, got {mask.shape}: resize one of them.")
    longest = max(mask.shape)
    factor = -(-least // longest) if longest < least else min(1.0, most / longest)
    size = (max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor)))
    objects = _resize_mask(np.where(mask == IGNORE, 0, mask).astype(np.uint8), size, factor)
    width = 1 + max(size) // 1600  # of a line, to each side of the border
    touching = None if numbers is None else _touching(numbers, size, both=not thin)
    if thin:
        highest, line = objects, (_spread(objects, 1, np.minimum) != objects).view(np.uint8)
        line = line if touching is None else line | touching
    else:
        highest, lowest = _spread(objects, width, np.maximum), _spread(objects, width, np.minimum)
        line = (highest != lowest).view(np.uint8)  # (h, w)
        line = line if touching is None else line | _spread(touching, width - 1, np.maximum)
    if image.shape[1::-1] != size:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.uint8)
    planes = image.transpose(2, 0, 1).copy()  # (3, h, w)
    _paint(planes, _colors_of(objects), (objects > 0) * np.uint8(255 * _FILL))
    if not thin:
        _paint(planes, (0, 0, 0), _soft(_spread(line, 1, np.maximum), _RIM))
    _paint(planes, _colors_of(highest), line * np.uint8(255) if thin else _soft(line))
    return np.stack(list(planes), axis=-1)


def draw_panel(
    pictures: Sequence[Picture],
    titles: Sequence[str],
    *,
    classes: Sequence[str] = (),
    columns: int | None = None,
    height: int = 512,
) -> Picture:
    """Put pictures side by side, each below its title, with a legend of the classes.

    Draw overlays at the size that they have in the panel: ``draw_overlay(…, least=height, most=height)``.

    Args:
        pictures: RGB, of any sizes.
        titles: One title per picture.
        classes: Names of the classes for the legend, background first; empty for no legend.
        columns: Pictures in a row; None for a single row.
        height: Height of each picture in the panel, in pixels; proportions are kept.

    Shape:
        each (H, W, 3)

    Returns:
        One RGB picture, (h, w, 3).

    Raises:
        DataError: There is no picture, or not one title for each.
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
    if size == mask.shape[::-1]:
        return mask
    if factor <= 1:
        return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), np.uint8)
    best, strongest = np.zeros(size[::-1], np.uint8), np.full(size[::-1], 255, np.int16)
    shares = []
    for index in np.unique(mask[mask > 0]):
        picture = Image.fromarray((mask == index).astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        share = np.asarray(picture.filter(ImageFilter.GaussianBlur(max(1, 0.25 * factor))), np.uint8)
        strongest -= share  # the rest belongs to the background
        shares.append((index, share))
    for index, share in shares:
        stronger = share > strongest
        best[stronger], strongest[stronger] = index, share[stronger]
    return best


def _touching(numbers: npt.NDArray[np.int32], size: tuple[int, int], *, both: bool) -> npt.NDArray[np.uint8]:
    """Pixels at which two objects touch, at that width and height: of both, or only of the upper and left one."""
    if size != numbers.shape[::-1]:
        resized = Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST)
        numbers = np.asarray(resized, np.int32)
    found = np.zeros(numbers.shape, np.uint8)
    for axis in (0, 1):
        values, marked = numbers.swapaxes(0, axis), found.swapaxes(0, axis)
        different = (values[1:] != values[:-1]) & (values[1:] > 0) & (values[:-1] > 0)
        marked[:-1] |= different
        if both:
            marked[1:] |= different
    return found


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


def _paint(planes: Picture, colors: Color | Picture, opacity: Picture) -> None:
    """Paint colors over a picture, in place; the same values as Pillow's ``paste``, in less than half its time.

    Args:
        planes: Red, green and blue of the picture.
        colors: One color, or the color of each pixel.
        opacity: 0..255.

    Shape:
        planes and colors (3, h, w), opacity (h, w)
    """
    rows = max(1, _PAINTED // planes.shape[2])
    for top in range(0, planes.shape[1], rows):
        part = slice(top, top + rows)
        share = opacity[part].astype(np.uint16)
        rest = 255 - share
        for plane, color in zip(planes[:, part], colors, strict=True):
            values = plane * rest
            if not isinstance(color, int):
                values += share * color[part]
            elif color:
                values += share * np.uint16(color)
            values += 128
            values += values >> 8  # a division by 255, rounded
            values >>= 8
            plane[:] = values


def _colors_of(mask: Picture) -> Color | Picture:
    """The color of each pixel of a mask, (3, h, w); the color itself where there is one class beside the background."""
    highest = mask.max()
    several = bool(((mask > 0) & (mask < highest)).any())
    return np.ascontiguousarray(color_table().T)[:, mask] if several else class_color(int(highest))


@functools.cache
def _opacities(most: float) -> list[int]:
    """Opacity at each value of a band that was spread, 0 to 36; for Pillow's ``point``."""
    return [round(most * 255 * min(it, 36) / 36) for it in range(256)]


def _soft(band: Picture, opacity: float = 1.0) -> Picture:
    """Opacity of a band of ones, with soft edges: a Gaussian of 0.6 pixels, 1-4-1 along both axes."""
    for axis in (0, 1):
        values = band.swapaxes(0, axis)
        spread: Picture = values * np.uint8(4)
        spread[1:] += values[:-1]
        spread[:-1] += values[1:]
        band = spread.swapaxes(0, axis)  # up to 6, then 36
    return np.asarray(Image.fromarray(np.ascontiguousarray(band)).point(_opacities(opacity)), np.uint8)


def _to_height(picture: Picture, height: int) -> Image.Image:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
