"""Whole slides: read, segmented and written a few rows at a time, with memory that does not grow with the slide."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from microseg.cpu import return_memory
from microseg.errors import DataError, SettingsError
from microseg.inference.engine import Engine
from microseg.inference.out_of_distribution import slide_ood_score
from microseg.inference.stream import Confidence, MaskRows, stream_mask
from microseg.inference.tiling import Tile
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.files import OUTPUTS, SUFFIXES, check_outputs, file_sha256, output_names, publish, staged
from microseg.outputs.label_pyramid import LabelPyramid
from microseg.outputs.object_stream import ObjectStream, StreamedObjects
from microseg.outputs.overlay import draw_overlay
from microseg.outputs.record import Provenance, Record, software_versions
from microseg.slides.readers import open_slide
from microseg.slides.slide import Slide, SlideView
from microseg.slides.tissue import TissueMap, find_tissue

__all__ = ["segment_slide", "slide_rows"]

_OVERLAY = 2048  # pixels of the overlay's longer side, at most
_AHEAD = 1  # pieces that wait to be measured and written


def segment_slide(
    engine: Engine,
    path: Path,
    out: Path,
    *,
    provenance: Provenance,
    outputs: Collection[str] = OUTPUTS,
    mpp: float | None = None,
    skip_glass: bool = True,
    name: str | None = None,
    sha256: str | None = None,
    reference: ReferenceDistribution | None = None,
    progress: Callable[[float], None] | None = None,
) -> Record:
    """Segment a slide into files, each written whole or not at all, and the record last.

    The label image is on the model's pixel grid (its own pixel size says so); outlines, measurements and the record
    are in pixels of the slide's finest level.

    Args:
        engine: the network.
        path: of the slide; any image that `open_slide` opens.
        out: folder of the outputs, made where missing.
        provenance: of the network, as it is to be recorded.
        outputs: any of ``SUFFIXES`` but the probabilities.
        mpp: microns per pixel; None: what the file says.
        skip_glass: leave out tiles that show bare glass only; they are background.
        name: how the files' names begin; None: as the slide's, unless another image has taken that.
        sha256: of the file; None: computed.
        reference: what the network knows, to tell the slide's drift.
        progress: called with the share of the slide that is done, 0..1.

    Returns:
        The record.

    Raises:
        ImageReadError: the slide cannot be read, or is damaged somewhere.
        DataError: its pixel size is unknown, but the model's is known; or the two are too far apart.
        SettingsError: an output is unknown, or the probabilities are asked for.
    """
    check_outputs(outputs)
    if "probabilities" in outputs:
        raise SettingsError("Expected outputs without probabilities, which are too large for slides: leave them out.")
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with open_slide(path) as slide:
        stated = slide.mpp if mpp is None else mpp
        view, tissue = _prepare(engine, slide, stated, skip_glass)
        name = output_names([path], out)[0] if name is None else name
        sha256 = sha256 or file_sha256(path)
        files = {output: name + SUFFIXES[output] for output in SUFFIXES if output in outputs}
        certainty = Confidence()
        outlined = bool({"outlines", "objects"} & set(outputs))
        with staged(out, name) as staging, _Collector(view, len(engine.classes), staging, outlined) as collector:
            _collect(engine, view, tissue, certainty, collector, progress)
            objects = collector.objects.finish()
            summary = _summary(collector, objects, engine.classes, slide, stated, tissue, certainty)
            ood_score = slide_ood_score(reference, view, tissue)
            made = {output: staging / file for output, file in files.items()}
            _write_files(made, slide, view, collector, objects, engine, stated, name, sha256)
            record = Record(
                name=name,
                source=str(path.resolve()),
                source_sha256=sha256,
                width=slide.width,
                height=slide.height,
                mpp=stated,
                step=(view.step_x, view.step_y),
                classes=engine.classes,
                provenance=provenance,
                outputs=files,
                summary=summary if ood_score is None else summary | {"ood_score": ood_score},
                created=datetime.now(UTC),
                seconds=round(time.perf_counter() - started, 3),
                software=software_versions(),
            )
            publish(staging, out, record)
    return record


def slide_rows(
    engine: Engine, slide: Slide, mpp: float | None, *, skip_glass: bool = True
) -> tuple[SlideView, Iterator[MaskRows]]:
    """The mask of a slide from top to bottom, without any file.

    Args:
        engine: the network.
        slide: open.
        mpp: its microns per pixel; None: unknown.
        skip_glass: see `segment_slide`.

    Returns:
        The slide on the mask's pixel grid, and the rows of the mask.

    Raises:
        DataError: as `segment_slide`.
    """
    view, tissue = _prepare(engine, slide, mpp, skip_glass)
    return view, stream_mask(engine, view, _wanted(view, tissue), Confidence())


def _prepare(engine: Engine, slide: Slide, mpp: float | None, skip_glass: bool) -> tuple[SlideView, TissueMap | None]:
    if mpp is None and engine.mpp is not None:
        raise DataError(
            f"{slide.path}: expected microns per pixel, as the model works at {engine.mpp}, but the file states none. "
            "Give --mpp, a line in images.csv (file,mpp), or mpp in the lab's lab.yaml."
        )
    return SlideView(slide, engine.zoom(mpp)), find_tissue(slide) if skip_glass else None


def _wanted(view: SlideView, tissue: TissueMap | None) -> Callable[[Tile], bool]:
    def touches(tile: Tile) -> bool:
        return tissue is None or tissue.touches(
            tile.columns.inner_start / view.width,
            tile.rows.inner_start / view.height,
            tile.columns.inner_stop / view.width,
            tile.rows.inner_stop / view.height,
        )

    return touches


@dataclass
class _Collector:
    """What becomes of the rows of a mask: all of it on the way, none of it kept whole."""

    view: SlideView
    classes: int
    folder: Path
    outlines: bool
    objects: ObjectStream = field(init=False)
    labels: LabelPyramid = field(init=False)
    pixels: npt.NDArray[np.int64] = field(init=False)  # of each class
    small: npt.NDArray[np.uint8] = field(init=False)  # the mask for the overlay

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        spool = self.folder / "outlines.spool"
        self.objects = self._stack.enter_context(ObjectStream(self.view.width, spool, outlines=self.outlines))
        self.labels = self._stack.enter_context(LabelPyramid(self.view.width, self.view.height, self.folder))
        self.pixels = np.zeros(self.classes, np.int64)
        self._every = max(1, -(-max(self.view.width, self.view.height) // _OVERLAY))
        self.small = np.zeros((-(-self.view.height // self._every), -(-self.view.width // self._every)), np.uint8)

    def __enter__(self) -> "_Collector":
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def add(self, rows: MaskRows) -> int:
        """Take rows, and give the number of the first one that is still to come."""
        self.labels.add(rows.mask)
        self.objects.add(rows.mask, rows.certainty)
        self.pixels += [np.count_nonzero(rows.mask == index) for index in range(self.classes)]
        first = -(-rows.top // self._every)
        sampled = rows.mask[first * self._every - rows.top :: self._every, :: self._every]
        self.small[first : first + len(sampled)] = sampled
        return rows.top + len(rows.mask)


def _collect(
    engine: Engine,
    view: SlideView,
    tissue: TissueMap | None,
    certainty: Confidence,
    collector: _Collector,
    progress: Callable[[float], None] | None,
) -> None:
    """Hand rows over to the collector in a thread of its own, while the network goes on."""
    with ThreadPoolExecutor(1) as other:
        waiting: deque[Future[int]] = deque()

        def settle(most: int) -> None:
            while len(waiting) > most:
                done = waiting.popleft().result()
                if progress is not None:
                    progress(done / view.height)

        for rows in stream_mask(engine, view, _wanted(view, tissue), certainty):
            waiting.append(other.submit(collector.add, rows))
            settle(_AHEAD)
            return_memory()  # else what the longest row of tiles took once stays
        settle(0)


def _write_files(
    files: dict[str, Path],
    slide: Slide,
    view: SlideView,
    collector: _Collector,
    objects: StreamedObjects,
    engine: Engine,
    mpp: float | None,
    name: str,
    sha256: str,
) -> None:
    step = (view.step_x, view.step_y)
    if "labels" in files:
        size = None if mpp is None else mpp * (step[0] * step[1]) ** 0.5
        collector.labels.write(files["labels"], mpp=size, classes=engine.classes)
    if "outlines" in files or "objects" in files:
        known_by = slide.path.name if name in (slide.path.stem, slide.path.name) else name
        objects.write(
            engine.classes,
            image=known_by,
            mpp=mpp,
            step=step,
            source=sha256,
            table=files.get("objects"),
            outlines=files.get("outlines"),
        )
    if "overlay" in files:
        height, width = collector.small.shape
        picture = Image.fromarray(slide.thumbnail(max(height, width))).resize((width, height))
        drawn = draw_overlay(np.asarray(picture, np.uint8), collector.small)
        Image.fromarray(drawn).save(files["overlay"], quality=90, subsampling=0)


def _summary(
    collector: _Collector,
    objects: StreamedObjects,
    classes: tuple[str, ...],
    slide: Slide,
    mpp: float | None,
    tissue: TissueMap | None,
    certainty: Confidence,
) -> dict[str, int | float | None]:
    """Figures of the whole slide, named as those of `summarize_image`; confidence is over what the network saw."""
    counts = np.bincount(objects.indices, minlength=len(classes))
    total = int(collector.pixels.sum())
    summary: dict[str, int | float | None] = {
        "area_mm2": None if mpp is None else slide.width * slide.height * mpp**2 / 1e6
    }
    for index, label in enumerate(classes[1:], start=1):
        summary[f"objects_{label}"] = int(counts[index])
        summary[f"area_fraction_{label}"] = float(collector.pixels[index] / total)
    seen = certainty.pixels
    summary["mean_confidence"] = certainty.highest / seen if seen else None
    summary["mean_entropy"] = certainty.entropy / seen / float(np.log(len(classes))) if seen else None
    return summary | {"tissue_fraction": None if tissue is None else tissue.fraction, "computed_fraction": seen / total}
