"""Views of slides with the outlines of their objects at full resolution: DeepZoom tiles, and a page that shows them."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from microseg.errors import MicrosegError
from microseg.escaping import printable
from microseg.files import write_text_file
from microseg.outputs.overlay import draw_overlay
from microseg.outputs.record import Record
from microseg.report.templates import load_template
from microseg.slides.channels import ReadOptions
from microseg.slides.limited import open_slide
from microseg.slides.slide import SlideView

__all__ = ["write_slide_view"]

_log = logging.getLogger(__name__)

_TILE = 512
_QUALITY = 80  # of the JPEG files

Rows = npt.NDArray[np.integer]


def write_slide_view(record: Record, outputs: Path, folder: Path) -> str | None:
    """Write the tiles of a slide with thin outlines, and the page that shows them; a newer one than the record is kept.

    Memory holds one row of tiles of the label image.

    Args:
        record: Record of the slide, with the output ``labels``.
        outputs: Folder of the outputs.
        folder: Folder of the views; created if missing.

    Returns:
        File name of the page; None where the image is no slide, and, with a warning, where it cannot be read or the
        view cannot be written.

    Reference:
        The DeepZoom format: ``<name>.dzi`` and ``<name>_files/<level>/<column>_<row>.jpg``, which other viewers open.
    """
    if "tissue_fraction" not in record.summary or "labels" not in record.outputs:
        return None
    page, tiles = folder / f"{record.name}.html", folder / f"{record.name}_files"
    if page.is_file() and page.stat().st_mtime > (outputs / f"{record.name}.json").stat().st_mtime:
        return page.name
    shutil.rmtree(tiles, ignore_errors=True)
    height, width = record.mask_shape
    last = max(height, width, 2) - 1
    levels = last.bit_length()  # the largest level
    reading = ReadOptions.from_record(record.provenance.inference)
    try:
        with open_slide(record.source, reading) as slide:
            view = SlideView(slide, width / slide.width)
            if (view.height, view.width) != (height, width):
                return None
            _write_finest(record, outputs, view, tiles / str(levels))
        for level in range(levels - 1, -1, -1):
            size = -(-height // 2 ** (levels - level)), -(-width // 2 ** (levels - level))
            _write_coarser(tiles / str(level + 1), tiles / str(level), *size)
        write_text_file(folder / f"{record.name}.dzi", _descriptor(width, height))
        write_text_file(page, _page(record, levels))
    except (OSError, MicrosegError, MemoryError) as error:
        _log.warning("The view of %s was not written: %s", printable(record.display_name), error)
        return None
    return page.name


def _write_finest(record: Record, outputs: Path, view: SlideView, folder: Path) -> None:
    folder.mkdir(parents=True)
    labels = _tile_rows(outputs / record.outputs["labels"])
    numbered = _tile_rows(outputs / record.outputs["instances"]) if record.instances else None
    for row, mask in enumerate(labels):
        numbers = None if numbered is None else next(numbered).astype(np.int32)
        rows, inner_rows = _with_neighbors(row, view.height)
        for column in range(-(-view.width // _TILE)):
            columns, inner_columns = _with_neighbors(column, view.width)
            parts = mask[:, columns].astype(np.uint8), None if numbers is None else numbers[:, columns]
            drawn = draw_overlay(view.read(rows, columns), *parts, least=1, most=2 * _TILE, thin=True)
            _save(Image.fromarray(drawn[inner_rows, inner_columns]), folder, column, row)


def _with_neighbors(number: int, length: int) -> tuple[slice, slice]:
    """The pixels of a tile along one axis with those beside it, which outlines need, and the tile's own among them."""
    start, stop = number * _TILE, min(length, (number + 1) * _TILE)
    first = max(0, start - 1)
    return slice(first, min(length, stop + 1)), slice(start - first, stop - first)


def _write_coarser(finer: Path, folder: Path, height: int, width: int) -> None:
    """Halve four tiles each to one."""
    folder.mkdir()
    for row in range(-(-height // _TILE)):
        for column in range(-(-width // _TILE)):
            size = min(_TILE, width - column * _TILE), min(_TILE, height - row * _TILE)
            whole = Image.new("RGB", (2 * _TILE, 2 * _TILE), (255, 255, 255))
            edge = [0, 0]
            for down in (0, 1):
                for across in (0, 1):
                    file = finer / f"{2 * column + across}_{2 * row + down}.jpg"
                    if file.is_file():
                        with Image.open(file) as tile:
                            whole.paste(tile, (across * _TILE, down * _TILE))
                            edge = [max(edge[0], across * _TILE + tile.width), max(edge[1], down * _TILE + tile.height)]
            reduced = whole.crop((0, 0, edge[0], edge[1])).resize(size, Image.Resampling.BOX)
            _save(reduced, folder, column, row)


def _tile_rows(path: Path) -> Iterator[Rows]:
    """Rows of the finest level of a label image that microseg wrote: those of each tile of the view, with one above and
    one below where there are any.
    """
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        height, width = page.shape
        rows, waiting = np.zeros((page.tilelength, width), page.dtype), np.zeros((0, width), page.dtype)
        across, above = -(-width // page.tilewidth), 0
        for number, (data, index, shape) in enumerate(page.segments()):
            _, _, top, left, _ = index
            if data is None:
                rows[:, left : left + page.tilewidth] = 0
            else:
                part = data.reshape(data.shape[-3:-1])[: shape[1], : shape[2]]
                rows[: len(part), left : left + part.shape[1]] = part[:, : width - left]
            if (number + 1) % across:
                continue
            waiting = np.concatenate([waiting, rows[: height - top]])
            while len(waiting) > above + _TILE:
                yield waiting[: above + _TILE + 1]
                waiting, above = waiting[above + _TILE - 1 :], 1
        yield waiting


def _save(tile: Image.Image, folder: Path, column: int, row: int) -> None:
    tile.save(folder / f"{column}_{row}.jpg", quality=_QUALITY, subsampling=0)


def _descriptor(width: int, height: int) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" '
        f'Format="jpg" Overlap="0" TileSize="{_TILE}"><Size Width="{width}" Height="{height}"/></Image>\n'
    )


def _page(record: Record, levels: int) -> str:
    height, width = record.mask_shape
    data = {"name": record.name, "width": width, "height": height, "levels": levels, "tile": _TILE}
    return load_template("slide_view.html.j2").render(
        title=record.display_name, model=record.provenance.model, data=data | {"mpp": record.label_mpp}
    )
