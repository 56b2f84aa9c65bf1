"""Parameters of the network, of training and of adaptation."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from microseg.config.section import Channels, Fraction, Section, ZoomRange

__all__ = ["AdaptSettings", "ArchitectureSettings", "FitSettings", "NetworkSettings", "TrainSettings"]


class ArchitectureSettings(Section):
    """The architecture of the segmentation network."""

    encoder: str = "tf_efficientnet_lite0"
    """``blocks``, another name of the entry-point group ``microseg.encoders``, or any timm model with feature maps."""
    channels: tuple[Channels, ...] = Field((32, 64, 128, 256), min_length=1)
    """Channels of E1…E4, for ``encoder: blocks``; their number is the number of blocks."""
    decoder_channels: tuple[Channels, ...] | None = None
    """Channels of the decoder blocks, deepest first (Dn…D1); null to follow the encoder."""
    pyramid_bins: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 3, 6), min_length=1)
    """Grid sizes of the pyramid pooling module."""
    pyramid_channels: Channels = 128
    """Channels of the pyramid pooling module's output."""
    head: str = "semantic"
    """Prediction head, of the entry-point group ``microseg.heads``."""
    instances: tuple[str, ...] = ()
    """Classes whose touching objects are separated, by the head ``instance``; the labs need instance labels. Empty for
    those that the labs' ``lab.yaml`` states, if any."""

    @property
    def head_in_use(self) -> str:
        """``head``; where instances are to be separated ``instance`` in place of the default, which cannot."""
        default = type(self).model_fields["head"].default
        return "instance" if self.instances and self.head == default else self.head

    @model_validator(mode="after")
    def _check_decoder(self) -> Self:
        if self.encoder == "blocks" and self.decoder_channels is not None:
            expected, given = len(self.channels), len(self.decoder_channels)
            if expected != given:
                raise ValueError(f"expected {expected} decoder_channels, one per encoder block, got {given}")
        return self


class NetworkSettings(ArchitectureSettings):
    """The network of `microseg train`; classes and pixel size come from the labelled labs."""

    weights: str | None = "imagenet"
    """Weights of the encoder: ``imagenet``, a file, or null for random weights."""
    weights_license: str | None = None
    """License of the weights, for the model card; null for the one that timm states, if any."""


class FitSettings(Section):
    """What supervised training and adaptation share: length, batches, optimizer, checkpoints."""

    steps: PositiveInt = 300
    """Number of optimization steps."""
    max_minutes: PositiveFloat | None = None
    """Stop after this time, whatever the step; null for no limit."""
    batch_size: PositiveInt = 4
    """Crops per batch, of each lab."""
    crop_size: PositiveInt = 192
    """Side of a crop, in pixels at the model's pixel size; less where the images are smaller."""
    zoom_range: ZoomRange = (0.67, 1.5)
    """Range of the random zoom of crops."""
    source_color_jitter: NonNegativeFloat = 0.6
    """Strength of random color changes of labelled crops; 0 for none."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of AdamW."""
    warmup_steps: int = Field(20, ge=0)
    """Steps over which the learning rate rises; after them it falls as a cosine to 1 % of its peak."""
    grad_clip_norm: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    dice_weight: NonNegativeFloat = 1.0
    """α in the segmentation loss CE + α · (1 − Dice)."""
    ema_decay: float = Field(0.98, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, which is the result; 0 takes the last weights."""
    evaluate_every: PositiveInt = 150
    """Steps between two evaluations on held-out images."""
    patience: int = Field(0, ge=0)
    """Evaluations without a better score after which training stops; 0 for never."""
    checkpoint_every: PositiveInt = 50
    """Steps between two checkpoints."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that read and crop images ahead of the training, 0 for none; ``auto``: one on each core, at most 8,
    for a GPU, and at most one where the CPU computes."""
    log_every: PositiveInt = 10
    """Steps between two readings of the losses from a GPU, which waits meanwhile; on a CPU they are read each step."""
    compile: bool = False
    """Compile the network with ``torch.compile``, on CUDA only."""

    @model_validator(mode="after")
    def _check_zoom_range(self) -> Self:
        if self.zoom_range[0] > self.zoom_range[1]:
            raise ValueError(f"zoom_range: expected the smaller factor first, got {list(self.zoom_range)}")
        return self


class TrainSettings(FitSettings):
    """Supervised training of the first segmenter on labelled labs."""


class AdaptSettings(FitSettings):
    """Adaptation of a segmenter to unlabelled labs."""

    method: str = "dual_adaptive_pyramid"
    """Adaptation method, of the entry-point group ``microseg.adaptation_methods``."""
    source: Literal["labelled", "none"] = "labelled"
    """Images of the source labs: ``labelled``, or ``none`` where they may not leave their hospital. Without them
    ``source_free`` takes the place of the default method."""
    steps: PositiveInt = 240
    zoom_range: ZoomRange = (0.75, 1.33)
    source_color_jitter: NonNegativeFloat = 0.7
    learning_rate: PositiveFloat = 5e-4
    evaluate_every: PositiveInt = 80
    lambda_image: NonNegativeFloat = 0.02
    """Weight λ_img of the image-level adversarial loss; 0 disables the level."""
    lambda_feature: NonNegativeFloat = 0.02
    """Weight λ_feat of the feature-level adversarial loss; 0 disables the level."""
    grl_warmup: Fraction = 0.5
    """Fraction of the training over which both weights rise from 0 (Ganin & Lempitsky 2015)."""
    classifier_learning_rate: PositiveFloat = 1e-3
    """Learning rate of the two domain classifiers."""
    target_megapixels: PositiveFloat = 6.0
    """Megapixels of a target lab that are looked at, at the model's pixel size, spread over its slides."""
    target_label_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the labelled crops that show labelled regions of the target labs, where they have some."""
    color_transfer_prob: Fraction = 0.5
    """Probability that a source crop is given the colors of a target image."""
    target_color_jitter: NonNegativeFloat = 0.7
    """Strength of random color changes of target crops."""
    search_scale: bool = True
    """Estimate the scale of a lab whose pixel size is not stated; otherwise it is assumed to be the model's."""
    normalization: Literal["shared", "running"] = "shared"
    """Batch-norm statistics: ``shared`` by all labs and fixed before training, or ``running``, those of each batch."""
    pseudo_label_weight: NonNegativeFloat = 1.0
    """Weight of the cross entropy to pseudo-labels on target crops; 0 disables them."""
    region_rules: bool = True
    """Remove regions from pseudo-labels that never occur in the labelled labs."""
    color_cluster_voting: bool = True
    """Let pixels of one color cluster vote on their pseudo-label, if color separates the source labs' classes."""
    color_aligned_tta: bool = True
    """If color does not separate the classes, average the initial predictions over color-aligned images."""
    pseudo_label_rounds: PositiveInt = 3
    """How often pseudo-labels are computed, at equal intervals during training."""

    @property
    def method_in_use(self) -> str:
        """``method``; without source images ``source_free`` in place of the default, which needs them."""
        default = type(self).model_fields["method"].default
        return "source_free" if self.source == "none" and self.method == default else self.method
