"""The numbers of training and of adaptation."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

__all__ = ["AdaptSettings", "FitSettings", "TrainSettings"]

Share = Annotated[float, Field(ge=0, le=1)]


class FitSettings(BaseModel):
    """What every training has: its length, its batches, its optimiser, its safeguards.

    Attributes:
        steps: number of optimisation steps.
        minutes: stop after so many minutes of training, whatever the step; None for no limit.
        batch: crops in a batch, of each lab.
        crop: side of a crop, pixels at the model's scale; less where the images are smaller.
        zoom: range of the random zoom of crops.
        colour: strength of the random change of stain and light, 0 for none; see ``jitter_colour``.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW.
        warmup: steps over which the learning rate rises; after them it falls as a cosine to 1 % of its peak.
        clip: largest norm of the gradient.
        alpha: weight of the Dice part of the segmentation loss.
        average: decay of the moving average of the weights, which is the result; 0 takes the last weights.
        evaluate_every: steps between two evaluations on held-out images.
        patience: evaluations without a better score after which training stops; 0 for never.
        checkpoint_every: steps between two checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: PositiveInt
    minutes: PositiveFloat | None = None
    batch: PositiveInt = 4
    crop: PositiveInt = 192
    zoom: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)
    colour: NonNegativeFloat = 0.3
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    warmup: int = Field(20, ge=0)
    clip: PositiveFloat = 1.0
    alpha: NonNegativeFloat = 1.0
    average: float = Field(0.98, ge=0, lt=1)
    evaluate_every: PositiveInt = 50
    patience: int = Field(0, ge=0)
    checkpoint_every: PositiveInt = 50

    @model_validator(mode="after")
    def _zoom_in_order(self) -> "FitSettings":
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom: expected the smaller factor first, got {self.zoom}")
        return self


class TrainSettings(FitSettings):
    """The first segmenter, from labelled labs."""

    steps: PositiveInt = 300


class AdaptSettings(FitSettings):
    """A segmenter's adaptation to unlabelled labs.

    Attributes:
        lambda_image: weight λ_img of the image-level adversary; 0 switches the level off.
        lambda_feature: weight λ_feat of the feature-level adversary; 0 switches the level off.
        ramp: share of the training over which both weights rise from 0 (Ganin & Lempitsky 2015).
        classifier_learning_rate: of the two domain classifiers.
        transfer: share of source crops that are given the colours of a target image.
        strong: strength of the change of colour of target crops.
        search_scale: find the scale of a lab that does not state its microns per pixel; off, it is taken to be the
            model's.
        normalisation: ``shared``: batch normalisation uses statistics of all labs together, fixed before training, so
            that training and use see the same network; ``running``: those of each batch, as usual.
        pseudo_labels: weight of the cross entropy to pseudo-labels on target crops; 0 switches them off.
        region_rules: take out of the pseudo-labels what the labelled labs never have; see `region_rules`.
        colour_votes: let pixels of one colour vote together on their pseudo-labels, where colour tells the classes in
            the labelled labs; see `voted_labels`.
        colour_views: let the first teacher see the new lab in colours near the labelled labs' too, where colour does
            not tell the classes.
        rounds: how often the pseudo-labels are made anew, evenly over the training.
    """

    steps: PositiveInt = 150
    learning_rate: PositiveFloat = 5e-4
    colour: NonNegativeFloat = 0.7
    lambda_image: NonNegativeFloat = 0.02
    lambda_feature: NonNegativeFloat = 0.02
    ramp: Share = 0.5
    classifier_learning_rate: PositiveFloat = 1e-3
    transfer: Share = 0.5
    strong: NonNegativeFloat = 0.7
    search_scale: bool = True
    normalisation: Literal["shared", "running"] = "shared"
    pseudo_labels: NonNegativeFloat = 1.0
    region_rules: bool = True
    colour_votes: bool = True
    colour_views: bool = True
    rounds: PositiveInt = 3
