"""The segmenter as developers use it."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from microseg.config.environment import Environment
from microseg.errors import WeightsError
from microseg.inference.batch import segment_batch, segment_file
from microseg.inference.engine import Engine
from microseg.inference.options import HALO, SLIDE_MEGAPIXELS, TILE, BatchOptions
from microseg.inference.out_of_distribution import image_ood_score, slide_ood_score
from microseg.inference.slide import slide_rows
from microseg.models.files import load_network
from microseg.models.network import PyramidSegmenter
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.outputs.files import OUTPUTS
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.outputs.tables import BatchSummary
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME, ModelVersion
from microseg.slides.readers import is_slide, open_slide
from microseg.slides.tissue import find_tissue
from microseg.training.devices import resolve_device

__all__ = ["Segmenter", "version_provenance"]


class Segmenter:
    """Segments images with one network.

    Args:
        network: the network.
        provenance: what made it, written with every result.
        reference: what it knows, to tell the drift of images; None: that is not told.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        tile: longest side of a tile, pixels at the model's scale.
        halo: half of the overlap of two tiles, pixels.
        batch: tiles computed at once.
        compiled: have PyTorch compile the network for CUDA; see `Engine`.

    Attributes:
        engine: the network, made ready.
        provenance: what made it, with what decides its results.
        reference: what it knows.
    """

    def __init__(
        self,
        network: PyramidSegmenter,
        *,
        provenance: Provenance | None = None,
        reference: ReferenceDistribution | None = None,
        device: str = "auto",
        tile: int = TILE,
        halo: int = HALO,
        batch: int = 4,
        compiled: bool = False,
    ) -> None:
        self.engine = Engine(
            network,
            device=resolve_device(device),
            tile=tile,
            halo=halo,
            batch=batch,
            compiled=compiled,
        )
        self.reference = reference
        made_by = provenance or Provenance(model="unregistered")
        inference = {**made_by.inference, **self.engine.parameters}
        self.provenance = made_by.model_copy(
            update={"weights_sha256": self.engine.weights_sha256, "inference": inference}
        )

    @classmethod
    def load(
        cls,
        model: str | int | Path = "production",
        *,
        tracking_uri: str | None = None,
        device: str = "auto",
        tile: int = TILE,
        halo: int = HALO,
        batch: int = 4,
        compiled: bool = False,
    ) -> "Segmenter":
        """Load a segmenter by its name in the registry, or from a folder. Nothing in its files is executed.

        Args:
            model: an alias such as ``production``, the number of a version, or a folder with ``weights.safetensors``
                and ``network.json``: a ``Path``, or a text with a separator in it. A plain word is a name in the
                registry, whatever folder there may be of that name.
            tracking_uri: of MLflow; what the environment says by default.
            device: see the class.
            tile: see the class.
            halo: see the class.
            batch: see the class.
            compiled: see the class.

        Raises:
            VersionNotFoundError: when the registry has no such version.
            WeightsError: when the folder is not there or its files cannot be used.
        """
        options: dict[str, Any] = {
            "tile": tile,
            "halo": halo,
            "batch": batch,
            "compiled": compiled,
        }
        if isinstance(model, Path) or (isinstance(model, str) and len(Path(model).parts) > 1):
            folder = Path(model)
            if not folder.is_dir():
                raise WeightsError(f"Expected a folder with a network at {folder}, found none: check the path.")
            provenance = Provenance(model=str(folder.absolute()))
            return cls(load_network(folder), provenance=provenance, device=device, **options)
        environment = Environment()
        registry = Registry(tracking_uri or environment.tracking_uri)
        version = registry.resolve(model)
        network = load_network(registry.download(version, environment.home.models))
        reference = registry.reference_distribution(version)
        return cls(network, provenance=version_provenance(version), reference=reference, device=device, **options)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the background first."""
        return self.engine.classes

    def segment(self, image: str | Path | npt.NDArray[np.uint8], *, mpp: float | None = None) -> Segmentation:
        """Segment one image.

        A slide, or an image of more than 16 megapixels, is read a few rows at a time; its mask is on the model's pixel
        grid (see `Segmentation.step`), and its probabilities are not kept. To have files of it, without the mask in
        memory, see `segment_to`.

        Args:
            image: a file, or RGB pixels, uint8.
            mpp: microns per pixel; what the file says by default. Where the model's are known too, the image is
                rescaled.

        Shape:
            (H, W, 3) → mask (H, W), probabilities (K, H, W)

        Raises:
            ImageReadError: when the file cannot be read.
            DataError: when the pixel size of a slide is unknown, or far from the model's.
        """
        if isinstance(image, str | Path):
            path = Path(image)
            if is_slide(path, megapixels=SLIDE_MEGAPIXELS):
                return self._segment_slide(path, mpp)
            return segment_file(self.engine, path, provenance=self.provenance, mpp=mpp, reference=self.reference)
        began = time.perf_counter()
        probabilities = self.engine.probabilities(image, mpp)  # (K, H, W)
        return Segmentation(
            mask=probabilities.argmax(0).astype(np.uint8),
            probabilities=probabilities,
            classes=self.classes,
            mpp=mpp,
            provenance=self.provenance,
            source="array",
            seconds=time.perf_counter() - began,
            ood_score=image_ood_score(self.reference, image, self.engine.zoom(mpp)),
        )

    def segment_to(
        self,
        images: Path | str | Sequence[Path | str],
        out: Path | str,
        *,
        mpp: float | None = None,
        outputs: Collection[str] = OUTPUTS,
    ) -> BatchSummary:
        """Segment images and slides into files; what is done there already is skipped.

        Args:
            images: one or several files.
            out: folder of the outputs.
            mpp: microns per pixel of all of them; None: what each file says.
            outputs: see `Segmentation.save`.

        Returns:
            How it went; an image that cannot be segmented is in ``failures.csv``.
        """
        paths = [Path(path) for path in ([images] if isinstance(images, str | Path) else images)]
        options = BatchOptions(outputs=outputs, mpp=mpp)
        return segment_batch(
            self.engine, paths, Path(out), provenance=self.provenance, options=options, reference=self.reference
        )

    def _segment_slide(self, path: Path, mpp: float | None) -> Segmentation:
        began = time.perf_counter()
        with open_slide(path) as slide:
            reference = slide.mpp if mpp is None else mpp
            view, rows = slide_rows(self.engine, slide, reference)
            mask = np.empty((view.height, view.width), np.uint8)
            for part in rows:
                mask[part.top : part.top + len(part.mask)] = part.mask
            ood_score = None if self.reference is None else slide_ood_score(self.reference, view, find_tissue(slide))
        return Segmentation(
            mask=mask,
            probabilities=None,
            classes=self.classes,
            mpp=reference,
            provenance=self.provenance,
            source=str(path),
            seconds=time.perf_counter() - began,
            step=(view.step_x, view.step_y),
            ood_score=ood_score,
        )


def version_provenance(version: ModelVersion) -> Provenance:
    """The provenance of what a registered version makes."""
    return Provenance(
        model=f"{MODEL_NAME}/{version.version}",
        run_id=version.run_id,
        datasets=dict(version.datasets),
        commit=version.tags.get("commit"),
        parameters={key: value for key, value in version.tags.items() if key in ("method", "base_version", "target")},
    )
