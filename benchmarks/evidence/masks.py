"""How well criteria that need no network tell good masks from bad ones.

    python -m benchmarks.evidence.masks --task synthetic synthetic_smear --out var/masks

A candidate need not be a network: here it is a mask that is wrong in a known way, such as whole cells in place of
nuclei, or everything above a threshold. Every mask of a lab is compared with every other one. A criterion is right
where it prefers the one of higher Dice.

The reference masks of the target lab are what the wrong masks are made of and what Dice is computed with, so that no
setting of microseg is selected with this command on labs that are for reporting only.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from scipy import ndimage

from benchmarks.adaptation.tasks import add_task_arguments, chosen_names, find_task
from benchmarks.evidence.measurement import EvaluationImages, report_images
from benchmarks.evidence.object_size import typical_object_area
from benchmarks.evidence.pairs import Rate
from benchmarks.results import ResultRows, Row, argument_parser, console_table, markdown_table
from microseg.annotations.index_masks import read_mask
from microseg.config.params import GateSettings
from microseg.errors import MicrosegError
from microseg.evaluation.criteria import class_shares, stain_explained_variance
from microseg.evaluation.overlap import dice
from microseg.evaluation.pixel_criteria import labelled_pixels
from microseg.evaluation.pixel_features import pixel_features
from microseg.evaluation.reverse_validation import forward_validation, reverse_validation
from microseg.registry.model_card import measurement_name
from microseg.slides.region import read_source
from microseg.training.adaptation.domain_shift import center_crop

__all__ = ["main", "wrong_masks"]

_CRITERIA = {
    "stain_explained_variance": 1,
    "reverse_validation": 1,
    "forward_validation": 1,
    "share_shift": -1,
    "object_size_shift": -1,
}
_SIDE = 256  # pixels of the crops
_DIFFERENT, _DISASTER = 0.05, 0.1  # of Dice
_GATE = GateSettings()

Preference = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
"""Whether the first of two rows is preferred."""

Image = npt.NDArray[np.uint8]


def wrong_masks(image: Image, mask: Image) -> dict[str, Image]:
    """Make wrong masks of a reference mask: by the name of the error.

    Args:
        image: RGB.
        mask: Class indices; 255 is ignored.

    Shape:
        (H, W, 3) and (H, W) → (H, W) each
    """
    rng = np.random.default_rng(0)
    foreground = (mask > 0) & (mask < 255)
    label = int(np.bincount(mask[foreground]).argmax()) if foreground.any() else 1
    objects, count = ndimage.label(foreground)
    kept = np.concatenate([[False], rng.random(count) < 0.5])[objects]
    gray = ndimage.gaussian_filter(image.mean(2), 1.0)
    found: dict[str, npt.NDArray[np.bool_]] = {
        "reference": foreground,
        "eroded": ndimage.binary_erosion(foreground, iterations=2),
        "half of the objects": foreground & kept,
        "shifted": np.roll(foreground, (gray.shape[0] // 2, gray.shape[1] // 3), (0, 1)),
        "with a shifted copy": foreground | np.roll(foreground, (gray.shape[0] // 2, gray.shape[1] // 3), (0, 1)),
    }
    found |= {f"dilated by {n}": ndimage.binary_dilation(foreground, iterations=n) for n in (2, 4, 8)}
    share = max(float(foreground.mean()), 0.005)
    for factor in (0.5, 1.0, 2.0, 4.0, 8.0):
        if factor * share < 0.9:
            found[f"darkest, {factor:g} times the area"] = gray <= np.quantile(gray, factor * share)
            found[f"brightest, {factor:g} times the area"] = gray >= np.quantile(gray, 1 - factor * share)
    return {
        name: np.where(mask == 255, np.uint8(255), np.where(foreground & each, mask, np.uint8(label) * each))
        for name, each in found.items()
    }


def _measure(
    masks: Sequence[Image],
    pixels: Sequence[Image],
    features: Sequence[npt.NDArray[np.float32]],
    images: EvaluationImages,
) -> dict[str, float]:
    classes = len(images.source.metadata.classes)
    target = labelled_pixels(features, masks)
    shares = np.nanmean([class_shares(mask, classes) for mask in masks], axis=0)
    explained = [stain_explained_variance(*pair, classes, images.modality) for pair in zip(pixels, masks, strict=True)]
    return {
        "stain_explained_variance": float(np.mean(explained)),
        "reverse_validation": reverse_validation(images.source_pixels, target, classes),
        "forward_validation": forward_validation(images.source_pixels, target, classes),
        "share_shift": float(np.abs(shares - images.expected).sum() / 2),
        "object_size_shift": abs(float(np.log(typical_object_area(masks) / images.typical_area))),
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse the arguments, measure the masks, print the table."""
    parser = argument_parser("benchmarks.evidence.masks", __doc__)
    add_task_arguments(parser)
    parser.add_argument("--images", type=int, default=4, help="of each lab (default 4)")
    parser.add_argument("--out", type=Path, default=Path("var/benchmarks/masks"))
    args = parser.parse_args(arguments)
    try:
        stored = ResultRows(args.out.absolute())
        rows = [row for name in chosen_names(args) for row in _task_rows(name, args, stored)]
    except MicrosegError as error:
        parser.exit(2, f"{error}\n")
    table = summarize(rows)
    title = f"Criteria on pairs of masks of one lab whose Dice differs by more than {_DIFFERENT:g}"
    Console().print(console_table(table, title))
    (stored.out / "tables.md").write_text(f"## {title}\n\n{markdown_table(table)}")


def _task_rows(name: str, args: argparse.Namespace, stored: ResultRows) -> list[Row]:
    key = {"task": name, "images": args.images}
    if found := [row for row in stored.rows if row.items() >= key.items()]:
        return found
    task = find_task(name, args.data, stored.out / "made")
    work = stored.out / "work" / name
    images = EvaluationImages.of(task, work, args.images)
    references = report_images(task, "target", work, args.images)
    pixels = [center_crop(read_source(it.image), _SIDE) for it in references]
    true = [center_crop(read_mask(it.mask), _SIDE) for it in references]
    features = [pixel_features(it, images.common_modality) for it in pixels]
    made = [wrong_masks(*pair) for pair in zip(pixels, true, strict=True)]
    rows = []
    for kind in [kind for kind in made[0] if all(kind in each for each in made)]:
        masks = [each[kind] for each in made]
        overlaps = [dice(mask, right, len(images.expected))[1:] for mask, right in zip(masks, true, strict=True)]
        row = key | {"mask": kind, "dice": float(np.nanmean(overlaps)), **_measure(masks, pixels, features, images)}
        rows.append(row)
        stored.add(row)
    return rows


def summarize(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate by criterion: share of right preferences by task, and preferred ones that are worse by more than 0.1."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    preferences: dict[str, Preference] = {
        measurement_name(name): partial(_prefers, name, sign) for name, sign in _CRITERIA.items()
    }
    preferences["stain-explained variance, unless forward validation falls, as in the gate"] = _both
    lines = []
    for criterion, prefers in preferences.items():
        pairs = {
            task: [
                (new["dice"] - old["dice"], prefers(new, old))
                for new in rows
                for old in rows
                if new is not old and new["task"] == old["task"] == task
            ]
            for task in tasks
        }
        right = {task: _right(part) for task, part in pairs.items()}
        every = [pair for part in pairs.values() for pair in part]
        harm = [preferred for gain, preferred in every if gain < -_DISASTER]
        lines.append(
            {"criterion": criterion}
            | {task: f"{rate.share:.0%}" if rate.of else "–" for task, rate in right.items()}
            | {"right": str(_right(every)), "worse by more than 0.1, preferred": str(Rate(sum(harm), len(harm)))}
        )
    return pd.DataFrame(lines)


def _prefers(name: str, sign: int, new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    return bool(sign * (new[name] - old[name]) > 0)


def _both(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    before, lost = old["forward_validation"], old["forward_validation"] - new["forward_validation"]
    counts = before >= _GATE.min_forward_validation
    return _prefers("stain_explained_variance", 1, new, old) and not (
        counts and lost > _GATE.max_forward_validation_loss
    )


def _right(pairs: Sequence[tuple[float, bool]]) -> Rate:
    """Pairs that differ enough and whose better mask is preferred."""
    judged = [preferred == (gain > 0) for gain, preferred in pairs if abs(gain) > _DIFFERENT]
    return Rate(sum(judged), len(judged))


if __name__ == "__main__":
    main()
