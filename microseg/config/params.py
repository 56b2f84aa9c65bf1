"""Parameters of data, gate, inference and service, with their defaults, units and ranges; those of training are in
`microseg.config.training_params`.

These models own the defaults. `params.yaml` repeats them for editing and for DVC; a test keeps both equal. See
`microseg.config.settings` for where values are read from.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from microseg.config.section import Density, Difference, Fraction, Ratio, Section

__all__ = [
    "DataSettings",
    "DemoSettings",
    "GateSettings",
    "InferenceSettings",
    "OnboardingSettings",
    "OutOfDistributionSettings",
    "PromotionSettings",
    "ScheduleSettings",
]


class DataSettings(Section):
    """How a labelled lab is split, by patient or slide, where incoming files may be, and how slides are kept."""

    val_fraction: float = Field(0.15, ge=0, lt=1)
    """Fraction of a labelled lab's slides on which checkpoints are selected."""
    test_fraction: float = Field(0.15, ge=0, lt=1)
    """Fraction held out for evaluation and for the gate."""
    allowed_roots: tuple[Path, ...] = ()
    """Folders, absolute, that events may name and that links in an incoming dataset may lead to, beside the drop folder
    and the folder of scheduled batches; for example a share with the images."""
    slides: Literal["keep", "reference"] = "keep"
    """``keep``: slides are linked into the dataset where the file system can, else copied once, and pushed with it.
    ``reference``: they stay where they are, are recorded by their hash, and are checked when they are read."""
    slide_fields: PositiveInt = 32
    """Fields without labels of a slide, spread over its tissue: what adaptation and evaluation can look at."""
    field_microns: PositiveFloat = 512.0
    """Side of a field, in microns."""


class GateSettings(Section):
    """What a candidate has to keep and to gain before it may replace the production model."""

    max_source_loss: Fraction = 0.02
    """Largest loss of Dice on any labelled source lab."""
    max_source_f1_loss: Fraction = 0.03
    """Largest loss of object F1 (IoU 0.5) on any source lab whose objects are numbered; not calibrated."""
    min_criterion_gain: Difference = 0.0
    """Gain of a label-free criterion on the target lab that is required."""
    min_target_gain: Difference = 0.0
    """Lower bound of the Dice gained on the target lab's masks, where it has enough of them."""
    max_target_loss: Fraction = 0.02
    """Largest loss of Dice on the target lab's masks that still counts as no change."""
    min_target_slides: Annotated[int, Field(ge=2)] = 3
    """Slides of the target lab with masks from which the Dice gained on these decides instead of the criteria."""
    max_foreground_change: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """Factor by which the fraction of foreground, or of background, may differ from production's on the target lab's
    images; a person must look at a larger change, whatever the criteria say."""
    max_forward_validation_loss: Fraction = 0.02
    """Loss of forward validation (area under the ROC curve) above which a person must look."""
    min_forward_validation: Fraction = 0.8
    """Production's forward validation below which pixels do not tell the classes apart, and it does not count."""
    min_foreground_ratio: Ratio = 0.25
    """Foreground fraction, relative to that in the source labs' masks, below which a person must look."""
    max_foreground_ratio: Ratio = 4.0
    """Foreground fraction, relative to that in the source labs' masks, above which a person must look."""
    collapse_share: float = Field(0.001, ge=0, lt=0.5)
    """Fraction of foreground, or of background, below which a segmentation has collapsed and is refused."""
    min_initial_dice: Fraction = 0.5
    """Dice that a first model has to reach on each labelled lab."""

    @model_validator(mode="after")
    def _check_ratios(self) -> Self:
        if self.min_foreground_ratio >= self.max_foreground_ratio:
            raise ValueError(
                "min_foreground_ratio: expected less than max_foreground_ratio "
                f"({self.max_foreground_ratio:g}), got {self.min_foreground_ratio:g}"
            )
        return self


class InferenceSettings(Section):
    """How images are segmented, and which files are written of them."""

    tile_size: PositiveInt = 640
    """Side of a tile, in pixels at the model's pixel size."""
    halo: int = Field(96, ge=0)
    """Half the overlap of two tiles; below three encoder strides (96) the borders of tiles become visible."""
    batch_size: PositiveInt = 4
    """Tiles computed at once; on a CPU at most one per core."""
    compile: bool = False
    """Compile the network with ``torch.compile``, on CUDA only."""
    outputs: tuple[str, ...] = ("labels", "outlines", "overlay", "objects")
    """Output writers, of the entry-point group ``microseg.output_writers``."""
    split_touching: tuple[str, ...] = ()
    """Classes whose touching objects are divided by the distance to the border of the mask, where the network has no
    instance head. See docs/concepts/objects.md."""
    stains: tuple[Literal["hematoxylin", "eosin", "dab"], ...] = Field((), max_length=3)
    """Stains whose optical density is measured in each object and in a ring around it."""
    stain_vectors: Literal["estimated"] | dict[str, tuple[Density, Density, Density]] = Field(default_factory=dict)
    """Optical density of these stains in the red, green and blue channel, such as ``{dab: [0.27, 0.57, 0.78]}``, in
    place of the published ones; or ``estimated``: from each image, of two stains."""
    dab_threshold: PositiveFloat = 0.2
    """Mean optical density of DAB in an object from which on it counts as positive; the default is QuPath's."""
    regions: Path | None = None
    """Folder of outlines of regions, ``<image>.geojson`` as QuPath exports annotations, that are measured one by one;
    null for none."""
    slide_megapixels: PositiveFloat = 16.0
    """Images above this size, and all slides, are read and written a few rows at a time."""
    skip_glass: bool = True
    """Do not compute tiles of a slide that show bare glass."""
    slide_view: bool = False
    """Write views of slides at full resolution with outlines, for the page of the batch; they take time and space."""
    chunk_size: PositiveInt = 100
    """Images of a batch that are segmented by one task."""
    workers: PositiveInt = 1
    """Processes that share a batch; above 1 needs ``pip install 'microseg[cluster]'``."""
    dask_scheduler: str | None = None
    """Address of a Dask scheduler, such as ``tcp://10.0.0.5:8786``, instead of local processes."""

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if not self.outputs:
            raise ValueError("outputs: expected at least one output writer, got []")
        if 4 * self.halo >= self.tile_size:  # the engine checks it again, with the stride of the network
            raise ValueError(f"halo: expected less than a quarter of tile_size ({self.tile_size}), got {self.halo}")
        return self


class OutOfDistributionSettings(Section):
    """When a batch counts as out of distribution. A score above 1 is beyond the limit of a single image."""

    max_share: Fraction = 0.15
    """Largest fraction of images that may be out of distribution."""
    max_median_score: PositiveFloat = 0.8
    """Largest median score of a batch."""


class DemoSettings(Section):
    """The synthetic labs of ``make demo``."""

    images_a: PositiveInt = 48
    """Labelled images of the source lab."""
    images_b: PositiveInt = 32
    """Unlabelled images of the target lab."""
    test_images: PositiveInt = 12
    """Held-out test images of each lab."""
    image_size: PositiveInt = 256
    """Side of an image, in pixels."""


class OnboardingSettings(Section):
    """Where new labs arrive, when an incoming dataset counts as complete, and when it is adapted to."""

    drop_folder: Path = Path("incoming")
    """Drop folder, with one folder for each incoming lab; relative to microseg's home, or absolute."""
    quiet_period: PositiveFloat = 120
    """Seconds without any change after which an incoming dataset is considered complete."""
    records: Path | None = None
    """Folder of the states of onboardings; null: ``records/onboarding`` in microseg's home. Several machines that serve
    one drop folder share it."""
    max_consistency_loss: Fraction = 0.02
    """Augmentation consistency that the production model may lose on a new lab, against its source labs, to suit it."""
    adapt_when_suited: bool = False
    """Adapt also to a lab without labels that the production model already suits: one in distribution, with that
    consistency."""


class PromotionSettings(Section):
    """Who decides on a candidate, and which images it is for."""

    approval: Literal["mlflow", "prefect", "gate"] = "mlflow"
    """``mlflow``: a person sets the alias there; ``prefect``: the run waits for a person; ``gate``: at once."""
    per_lab: bool = False
    """Promote a candidate only for the lab that it was adapted to (``production-<lab>``)."""
    adapt_again: bool = False
    """Adapt again to the lab of a candidate whose promotion would lose a lab that production was adapted to since."""


class ScheduleSettings(Section):
    """What runs on a schedule, and when."""

    segment_cron: str = "0 3 * * *"
    """Cron expression of batch segmentation."""
    timezone: str = "UTC"
    """Time zone of the cron expression."""
    folder: Path = Path("to-segment")
    """Folder to segment, relative to microseg's home or absolute; each folder in it with images is one batch."""
    resegment: bool = False
    """Segment unchanged images again when a new version is in production."""
    reconcile_minutes: PositiveFloat = 5
    """Minutes between two searches for promotions and incoming labs that no event reported."""
