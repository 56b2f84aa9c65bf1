"""What the sections of the parameters share: their base, and the kinds of their numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

__all__ = ["Channels", "Density", "Difference", "Fraction", "Ratio", "Section", "ZoomRange"]

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Difference = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Density = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Channels = Annotated[int, Field(ge=1, le=8192)]
ZoomRange = tuple[PositiveFloat, PositiveFloat]


class Section(BaseModel):
    """A section of the parameters: frozen, and without unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
