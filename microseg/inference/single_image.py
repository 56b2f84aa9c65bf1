"""One image in memory: its segmentation, without files."""

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from microseg.inference.engine import Engine
from microseg.inference.image_files import stated_mpp
from microseg.inference.out_of_distribution import image_ood_score
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.models.separation import class_mask
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.outputs.stains import StainOptions
from microseg.slides.channels import ReadOptions, check_read_options
from microseg.slides.identity import source_sha256
from microseg.slides.limited import image_mpp, read_image
from microseg.slides.pixel_size import agreed_mpp

__all__ = ["complete_provenance", "segment_file", "segment_pixels"]


def segment_file(
    engine: Engine,
    path: Path,
    *,
    provenance: Provenance,
    mpp: float | None = None,
    reference: ReferenceDistribution | None = None,
    reading: ReadOptions | None = None,
) -> Segmentation:
    """Segment one image file, without writing files; the arguments are those of `segment_slide`.

    Raises:
        ImageReadError: The file is not a readable image.
        DataError: Its pixel size is far from that of the model, or its channels are not those of the network.
    """
    check_read_options(engine.inputs, reading)
    sha256 = source_sha256(path) if path.exists() else ""  # read_image reports a missing file
    return segment_pixels(
        engine,
        read_image(path, reading),
        provenance=complete_provenance(provenance, engine, reading),
        mpp=agreed_mpp(path, image_mpp(path), stated_mpp(path, mpp)),
        reference=reference,
        source=str(path),
        source_sha256=sha256,
    )


def segment_pixels(
    engine: Engine,
    image: npt.NDArray[np.uint8],
    *,
    provenance: Provenance,
    mpp: float | None = None,
    reference: ReferenceDistribution | None = None,
    source: str = "array",
    source_sha256: str | None = None,
    stains: StainOptions | None = None,
) -> Segmentation:
    """Segment RGB pixels, (H, W, 3); the other arguments are recorded in the segmentation."""
    started = time.perf_counter()
    outputs = engine.outputs(image, mpp)  # (K + M, H, W)
    probabilities = outputs[: len(engine.classes)]  # (K, H, W)
    return Segmentation(
        mask=class_mask(probabilities),  # (H, W)
        probabilities=probabilities,
        classes=engine.classes,
        mpp=mpp,
        provenance=provenance,
        source=source,
        source_sha256=source_sha256,
        seconds=round(time.perf_counter() - started, 3),
        ood_score=image_ood_score(reference, image, engine.zoom(mpp)),
        instances=engine.label_objects(outputs, mpp) if engine.instances else None,
        instance_classes=tuple(engine.classes[index] for index in engine.instances),
        pixels=image if (stains and stains.names) or "channels" in provenance.inference else None,
        **(stains or StainOptions()).facts(lambda: image),
    )


def complete_provenance(provenance: Provenance, engine: Engine, reading: ReadOptions | None = None) -> Provenance:
    """Add the weights and settings of an engine, and how images are read."""
    inference = {**provenance.inference, **engine.parameters, **(reading or ReadOptions()).to_record()}
    return provenance.model_copy(update={"weights_sha256": engine.weights_sha256, "inference": inference})
