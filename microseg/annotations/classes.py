"""What the names in annotation files mean: classes, annotated regions and ignored areas."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from microseg.errors import ImageReadError

__all__ = ["IGNORE", "REGION", "UNCLASSIFIED", "Cells", "Color", "LabelClasses", "MaskKind"]

IGNORE = 255  # label of pixels that are excluded from losses and metrics
REGION = -1  # what `LabelClasses.index` returns for an annotated region
UNCLASSIFIED = "unclassified"  # name of annotations without a class

Color = tuple[int, int, int]
MaskKind = Literal["index", "binary", "instances", "colors", "class_pages"]
"""What the values of raster masks mean: class indices; 0 and another value, for one class; object numbers, for one
class; colors, see `LabelClasses.palette`; one page for each class, in the order of the classes."""
Cells = Literal["boundary", "nucleus"]


@dataclass(frozen=True)
class LabelClasses:
    """The classes of a lab, and how its annotation files name them.

    Names are compared regardless of case and of spaces around them. A name that ends with ``*`` stands for all names
    that begin so; QuPath's own class ``Region*`` is one of them.

    Attributes:
        names: Names of the classes in the order of their indices, background first.
        aliases: Further names of a class in annotation files, by its name in ``names``.
        regions: Names of annotated regions: outside of them nothing is known; None where each image is annotated
            completely.
        ignored: Names of areas that are left out: nothing is known about their pixels.
        masks: What the values of raster masks mean.
        palette: Color of each class in color masks, by name; a color that is missing is an error.
        cells: Which outline of QuPath's cells is the object; None where not stated.
    """

    names: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    regions: tuple[str, ...] | None = ("Region*",)
    ignored: tuple[str, ...] = ("Ignore*",)
    masks: MaskKind = "index"
    palette: Mapping[str, Color] = field(default_factory=dict)
    cells: Cells | None = None

    def index(self, name: str) -> int | None:
        """What a name in an annotation file means.

        Args:
            name: Name of a class in the file; `UNCLASSIFIED` for none.

        Returns:
            A class index, `IGNORE` for an ignored area, `REGION` for an annotated region; None where the name is
            unknown. Names of classes have precedence over names that end with ``*``.
        """
        for index, own in enumerate(self.names):
            if _key(name) in {_key(each) for each in (own, *self.aliases.get(own, ()))}:
                return index
        if any(_fits(name, each) for each in self.ignored):
            return IGNORE
        return REGION if any(_fits(name, each) for each in self.regions or ("Region*",)) else None

    def indices(self, names: Iterable[str]) -> list[int]:
        """What each name means, see `index`.

        Raises:
            ImageReadError: A name is unknown; the error lists all of them, and the line to add to ``lab.yaml``.
        """
        counts = Counter(names)
        known = {name: self.index(name) for name in counts}
        if unknown := [name for name, index in known.items() if index is None]:
            found = ", ".join(f"{name!r} ({counts[name]})" for name in unknown[:20])
            more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
            target = self.names[1]
            listed = [*self.aliases.get(target, ()), *unknown[:20]]
            raise ImageReadError(
                f"expected annotations of the classes {', '.join(self.names)}, got also {found}{more}. State in "
                f"lab.yaml what they are, such as `classes: {{{target}: {_flow(listed)}}}`, or leave their pixels out "
                f"by `ignored_classes: {_flow([*self.ignored, *unknown[:20]])}`."
            )
        return [index for name in names if (index := known[name]) is not None]

    @property
    def only_class(self) -> int | None:
        """Index of the only class beside the background; None where there are several."""
        return 1 if len(self.names) == 2 else None


def _key(name: str) -> str:
    return name.strip().casefold()


def _fits(name: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return _key(name).startswith(_key(pattern[:-1]))
    return _key(name) == _key(pattern)


def _flow(names: Iterable[str]) -> str:
    """A YAML list on one line."""
    return "[" + ", ".join('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names) + "]"
