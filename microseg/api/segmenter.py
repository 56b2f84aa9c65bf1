"""`Segmenter`, the Python API for segmentation."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import numpy.typing as npt

from microseg.config.environment import Environment
from microseg.datasets.lab_channels import Channels, parse_channels
from microseg.errors import DataError, VersionNotFoundError, WeightsError
from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine, EngineOptions
from microseg.inference.image_pipeline import BatchOptions
from microseg.inference.out_of_distribution import slide_ood_score
from microseg.inference.single_image import complete_provenance, segment_file, segment_pixels
from microseg.inference.slide import slide_strips
from microseg.models.files import load_network
from microseg.models.network import PyramidSegmenter
from microseg.models.reference_distribution import ReferenceDistribution
from microseg.models.separation import separate_objects
from microseg.outputs.batch_summary import BatchSummary
from microseg.outputs.files import OUTPUTS
from microseg.outputs.record import Provenance
from microseg.outputs.segmentation import Segmentation
from microseg.slides.channels import ReadOptions, check_read_options
from microseg.slides.limited import is_slide, open_slide
from microseg.slides.pixel_size import StatedMpp, agreed_mpp
from microseg.training.devices import resolve_device

if TYPE_CHECKING:  # MLflow is imported where the registry is used: a network in a folder needs none
    from microseg.registry.registry import Registry
    from microseg.registry.version import ModelVersion

__all__ = ["Segmenter", "find_version", "version_provenance"]


class Segmenter:
    """Segments images with one network.

    Args:
        network: The network.
        provenance: Origin of the network, recorded with every result; None for an unregistered network.
        reference: Reference distribution of the network; None: no out-of-distribution scores.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        options: ``tile``, ``halo``, ``batch``, ``half``, ``compiled`` and ``split``; see `Engine`.

    Attributes:
        engine: The network, prepared for inference.
        provenance: Origin of the network, with its weights and the settings that change results.
        reference: Reference distribution of the network.
    """

    def __init__(
        self,
        network: PyramidSegmenter,
        *,
        provenance: Provenance | None = None,
        reference: ReferenceDistribution | None = None,
        device: str = "auto",
        **options: Unpack[EngineOptions],
    ) -> None:
        self.engine = Engine(network, device=resolve_device(device), **options)
        self.reference = reference
        self.provenance = complete_provenance(provenance or Provenance(model="unregistered"), self.engine)

    @classmethod
    def load(
        cls,
        model: str | int | Path = "production",
        *,
        tracking_uri: str | None = None,
        device: str = "auto",
        **options: Unpack[EngineOptions],
    ) -> "Segmenter":
        """Load a registered version, or a network from a folder. Nothing in the files is executed.

        Args:
            model: ``"production"`` or ``"production-<lab>"``: the version that batches use for all labs or for this
                lab, which was validated; another alias; the number of a version; or a folder with
                ``weights.safetensors`` and ``network.json``: a ``Path``, or a string with a path separator. A string
                without one is always a name in the registry.
            tracking_uri: Tracking URI of MLflow; None: from the environment.
            device: See the class.
            options: See the class.

        Raises:
            VersionNotFoundError: The registry has no such version.
            WeightsError: The folder is missing, or its files cannot be used.
        """
        if isinstance(model, Path) or (isinstance(model, str) and len(Path(model).parts) > 1):
            folder = Path(model)
            if not folder.is_dir():
                raise WeightsError(f"Expected a folder with a network at {folder}, found none: check the path.")
            provenance = Provenance(model=str(folder.absolute()))
            return cls(load_network(folder), provenance=provenance, device=device, **options)
        from microseg.registry.registry import Registry

        environment = Environment()
        registry = Registry(tracking_uri or environment.tracking_uri)
        version = find_version(registry, model)
        network = load_network(registry.versions.download(version, environment.home.models))
        reference = registry.versions.reference_distribution(version)
        return cls(network, provenance=version_provenance(version), reference=reference, device=device, **options)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the background first."""
        return self.engine.classes

    def segment(
        self,
        image: str | Path | npt.NDArray[np.uint8],
        *,
        mpp: float | None = None,
        channels: Channels | None = None,
    ) -> Segmentation:
        """Segment one image.

        Slides, and images above ``inference.slide_megapixels``, are read strip by strip; their masks have the model's
        pixel size (see `Segmentation.step`), and no probabilities. To write files without holding the mask in memory,
        use `segment_to`.

        Args:
            image: A file, or RGB pixels, uint8; of a network that takes other channels, these in their place.
            mpp: Microns per pixel, where the file states none or the same; None to read it from the file. If the
                model's is known, the image is rescaled.
            channels: Channels of a file that the network takes, as in ``lab.yaml``, such as ``{"nuclei": "DAPI"}``;
                None for gray and RGB images.

        Shape:
            (H, W, 3) → mask (H, W), probabilities (K, H, W)

        Raises:
            ImageReadError: The file cannot be read.
            DataError: The pixel size of a slide is unknown, or far from the model's; or the channels are not those of
                the network.
        """
        if isinstance(image, str | Path):
            path, reading = Path(image), _read_options(channels)
            if is_slide(path, megapixels=BatchOptions().slide_megapixels):
                return self._segment_slide(path, mpp, reading)
            return segment_file(
                self.engine, path, provenance=self.provenance, mpp=mpp, reference=self.reference, reading=reading
            )
        return segment_pixels(self.engine, image, provenance=self.provenance, mpp=mpp, reference=self.reference)

    def segment_to(
        self,
        images: Path | str | Sequence[Path | str],
        out: Path | str,
        *,
        mpp: float | None = None,
        channels: Channels | None = None,
        outputs: Collection[str] = OUTPUTS,
    ) -> BatchSummary:
        """Segment images and slides into files; images whose outputs exist are skipped. See `segment_batch`.

        Args:
            images: One or several files.
            out: Folder of the outputs.
            mpp: Microns per pixel of images that state none or the same; None to read it from each file.
            channels: See `segment`.
            outputs: Names of output writers.

        Returns:
            Counts, times and tables; images that cannot be segmented are listed in ``failures.csv``.
        """
        paths = [Path(path) for path in ([images] if isinstance(images, str | Path) else images)]
        options = BatchOptions(outputs=outputs, mpp=mpp, reading=_read_options(channels))
        return segment_batch(
            self.engine, paths, Path(out), provenance=self.provenance, options=options, reference=self.reference
        )

    def _segment_slide(self, path: Path, mpp: float | None, reading: ReadOptions) -> Segmentation:
        started = time.perf_counter()
        check_read_options(self.engine.inputs, reading)
        with open_slide(path, reading) as slide:
            mpp = agreed_mpp(path, slide.mpp, None if mpp is None else StatedMpp(mpp, "mpp"))
            view, tissue, strips = slide_strips(self.engine, slide, mpp)
            mask = np.empty((view.height, view.width), np.uint8)
            interior = None if self.engine.interior is None else np.empty_like(mask)
            for strip in strips:
                rows = slice(strip.top, strip.top + len(strip.mask))
                mask[rows] = strip.mask
                if interior is not None and strip.interior is not None:
                    interior[rows] = strip.interior
            ood_score = slide_ood_score(self.reference, view, tissue)
        return Segmentation(
            mask=mask,
            probabilities=None,
            classes=self.classes,
            mpp=mpp,
            provenance=complete_provenance(self.provenance, self.engine, reading),
            source=str(path),
            seconds=time.perf_counter() - started,
            step=(view.step_x, view.step_y),
            ood_score=ood_score,
            tissue_fraction=tissue.fraction,
            instances=separate_objects(mask, interior, self.engine.separation()) if self.engine.instances else None,
            instance_classes=tuple(self.classes[index] for index in self.engine.instances),
        )


def _read_options(channels: Channels | None) -> ReadOptions:
    try:
        return ReadOptions(channels=() if channels is None else parse_channels(channels))
    except ValueError as error:
        raise DataError(f"channels: {error}. State them as in lab.yaml.") from error


def find_version(registry: "Registry", model: str | int) -> "ModelVersion":
    """Find a version as `Segmenter.load` does.

    Raises:
        VersionNotFoundError: There is no such version, or no such lab.
    """
    from microseg.registry.version import PRODUCTION, is_production, lab_of

    lab = lab_of(model) if isinstance(model, str) and is_production(model) else None
    if lab is None:
        return registry.versions.find(model)
    known = registry.production.labs()
    if lab not in known:
        raise VersionNotFoundError(
            f"expected the name of a lab after {PRODUCTION}-, got {lab!r}; the registry knows "
            f"{', '.join(sorted(known)) or 'none'}. For all other labs use {PRODUCTION!r}"
        )
    return registry.production.active(lab)


def version_provenance(version: "ModelVersion") -> Provenance:
    """Provenance of the results of a registered version."""
    from microseg.registry.version import MODEL_NAME

    return Provenance(
        model=f"{MODEL_NAME}/{version.version}",
        run_id=version.run_id,
        datasets=dict(version.datasets),
        commit=version.tags.get("commit"),
        parameters={key: value for key, value in version.tags.items() if key in ("method", "base_version", "target")},
    )
