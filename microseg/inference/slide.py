"""Whole slides: read, segmented and written strip by strip, with memory that does not grow with the slide."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from microseg.cpu import available_cores, return_memory
from microseg.errors import DataError
from microseg.inference.engine import Engine
from microseg.inference.image_files import BatchOptions, stated_mpp
from microseg.inference.out_of_distribution import slide_ood_score, tissue_windows
from microseg.inference.stream import reader_count, stream_mask
from microseg.inference.tiling import Tile
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.files import output_names
from microseg.outputs.image_summary import ConfidenceSums
from microseg.outputs.record import ImageInfo, Provenance, Record
from microseg.outputs.regions import region_facts
from microseg.outputs.segmentation_writer import SegmentationWriter
from microseg.outputs.writers import MaskStrip
from microseg.slides.channels import check_read_options
from microseg.slides.identity import source_sha256
from microseg.slides.limited import open_slide
from microseg.slides.pixel_size import StatedMpp, agreed_mpp
from microseg.slides.slide import Slide, SlideView
from microseg.slides.tissue import TissueMap, find_tissue
from microseg.threads import results_in_order

__all__ = ["segment_slide", "slide_strips"]

_AHEAD = 1  # strips that wait to be measured and written


def segment_slide(
    engine: Engine,
    path: Path,
    out: Path,
    *,
    provenance: Provenance,
    options: BatchOptions | None = None,
    mpp: float | StatedMpp | None = None,
    name: str | None = None,
    sha256: str | None = None,
    reference: ReferenceDistribution | None = None,
) -> Record:
    """Segment a slide and write its output files, all or none; see `SegmentationWriter`.

    The label image has the model's pixel size; outlines, measurements and the record are in pixels of the slide's
    finest level.

    Args:
        engine: The network.
        path: Path of the slide; any image that `open_slide` opens.
        out: Folder of the outputs; created if missing.
        provenance: Model, data and settings to record.
        options: What is written and measured, and how files are read; None for the defaults.
        mpp: Microns per pixel of this slide, where the file states none or the same; None: as the options state.
        name: Stem of the files' names; None: that of the slide, unless another image has it.
        sha256: SHA-256 of the file; None to compute it.
        reference: Reference distribution of the model; None: no out-of-distribution score.

    Returns:
        The record.

    Raises:
        ImageReadError: The slide cannot be read, or is damaged.
        DataError: The pixel size of the slide is unknown but that of the model is known; or they are too far apart; or
            the channels are not those of the network.
        SettingsError: An output is unknown, or needs probabilities.
    """
    started = time.perf_counter()
    options = options or BatchOptions()
    check_read_options(engine.inputs, options.reading)
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as beside, open_slide(path, options.reading) as slide:
        digest = None if sha256 else beside.submit(source_sha256, path)
        size = agreed_mpp(path, slide.mpp, stated_mpp(path, options.mpp if mpp is None else {path.name: mpp}))
        confidence = ConfidenceSums()
        view, tissue, strips = slide_strips(
            engine,
            slide,
            size,
            skip_glass=options.skip_glass,
            confidence=confidence,
            with_image=bool(options.stains.names or options.reading.channels),
        )
        image = ImageInfo(
            name=output_names([path], out)[0] if name is None else name,
            source=str(path.absolute()),
            source_sha256=sha256 if digest is None else digest.result(),
            width=slide.width,
            height=slide.height,
            mpp=size,
            step=(view.step_x, view.step_y),
            classes=engine.classes,
            provenance=provenance,
            instances=tuple(engine.classes[index] for index in engine.instances),
            **options.stains.facts(lambda: np.array(tissue_windows(view, tissue), np.uint8)),
            **region_facts(options.regions, path),
        )
        separation = engine.separation()  # of a mask with the model's pixel size
        score = beside.submit(slide_ood_score, reference, view, tissue)
        thumbnail = partial(slide.thumbnail, readers=reader_count(engine))
        threads = _output_threads(engine)
        with SegmentationWriter(
            out, image, options.outputs, thumbnail, slide=True, separation=separation, threads=threads
        ) as writer:
            _write_strips(strips, writer, trim=engine.device.type == "cpu")
            summary = {
                "tissue_fraction": tissue.fraction,
                "computed_fraction": confidence.pixels / (view.width * view.height),
            }
            if (distance := score.result()) is not None:
                summary["ood_score"] = distance
            seconds = round(time.perf_counter() - started, 3)
            return writer.finish(confidence, seconds=seconds, summary=summary, tissue=summary["tissue_fraction"])


def slide_strips(
    engine: Engine,
    slide: Slide,
    mpp: float | None,
    *,
    skip_glass: bool = True,
    confidence: ConfidenceSums | None = None,
    with_image: bool = False,
) -> tuple[SlideView, TissueMap, Iterator[MaskStrip]]:
    """Segment a slide strip by strip, without writing files.

    Args:
        engine: The network.
        slide: An open slide.
        mpp: Microns per pixel; None if unknown.
        skip_glass: See `segment_slide`.
        confidence: Updated with each computed block; None if not needed.
        with_image: Whether strips have the pixels of the slide.

    Returns:
        The slide on the pixel grid of the mask; its tissue; and the strips of the mask from top to bottom.

    Raises:
        DataError: See `segment_slide`.
    """
    if mpp is None and engine.mpp is not None:
        raise DataError(
            f"{slide.path}: expected microns per pixel, as the model works at {engine.mpp}, but the file states none. "
            "Give --mpp, a line in images.csv (file,mpp), or mpp in the lab's lab.yaml."
        )
    view, tissue = SlideView(slide, engine.zoom(mpp)), find_tissue(slide, readers=reader_count(engine))

    def shows_tissue(tile: Tile) -> bool:
        return not skip_glass or tissue.touches(
            tile.columns.inner_start / view.width,
            tile.rows.inner_start / view.height,
            tile.columns.inner_stop / view.width,
            tile.rows.inner_stop / view.height,
        )

    sums = confidence or ConfidenceSums()
    return view, tissue, stream_mask(engine, view, shows_tissue, sums, with_image=with_image)


def _output_threads(engine: Engine) -> int:
    """Threads that make outputs: one for each core where the network does not need these."""
    return available_cores() if engine.device.type == "cuda" else 1


def _write_strips(strips: Iterator[MaskStrip], writer: SegmentationWriter, *, trim: bool) -> None:
    """Write strips in another thread while the network computes the next ones."""
    with ThreadPoolExecutor(1) as other:
        for _ in results_in_order(lambda strip: other.submit(writer.add, strip), strips, _AHEAD):
            if trim:
                return_memory()  # otherwise the process keeps the memory of its longest row of tiles
