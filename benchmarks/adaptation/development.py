"""Development tasks for choosing settings: a labelled lab is split in two, the second with a simulated domain shift.

    python -m benchmarks.adaptation.development --lab labs/wbc/jtsc --shift smear --out var/development/wbc_dev

Only the lab's training images and masks are read, not its held-out test set in ``test/``. The result is a task for
``benchmarks.adaptation``. Shifts: ``smear`` (larger, other colors for each class, red cells that the first lab does not
have), ``dab`` (hematoxylin paler, some objects brown), ``smaller`` (half the size, other stain); and of the class
balance, with ``--factor``: ``sparse`` (few of the objects on glass, each in a paler body, half of the images empty) and
``balance`` (objects removed or duplicated, a slightly other stain). The split depends on the lab and the seed alone, so
that ``benchmarks.adaptation`` trains one source segmenter for all shifts of a lab.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image
from scipy import ndimage

from benchmarks.adaptation.balance import change_balance, optical_density, spread_on_glass, to_image
from benchmarks.results import argument_parser
from microseg.annotations.index_masks import read_mask
from microseg.slides.images import read_image, write_png

__all__ = ["BALANCE_SHIFTS", "SHIFTS", "make_task"]

Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
Shift = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8], np.random.Generator], Pair]

# unit vectors of hematoxylin, eosin and DAB in optical density (Ruifrok & Johnston 2001)
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
_SIDE = 300  # pixels of a smear's images


def smear(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], rng: np.random.Generator) -> Pair:
    """Enlarge 1.6 times, change the color of each class, add background with red cells. Three classes."""
    image, mask = _resize(image, mask, 1.6 * np.exp(rng.normal(0, 0.08)))
    density = optical_density(ndimage.gaussian_filter(image.astype(float), (0.5, 0.5, 0)))
    wanted = np.array([[0.02, 0.1, 0.2], [0.35, 0.35, 0.1], [1.3, 1.5, 0.5]]) + rng.normal(0, 0.05, (3, 3))
    ground, moved = np.clip(wanted[0], 0, None), np.zeros_like(density)
    for label in range(3):
        chosen = mask == label
        middle = np.median(density[chosen], axis=0) if chosen.any() else np.zeros(3)
        weight = ndimage.gaussian_filter(chosen.astype(float), 1)[..., None]
        moved += weight * (wanted[label] + 0.7 * (density - middle).mean(-1, keepdims=True))
    canvas = np.tile(ground, (_SIDE, _SIDE, 1))
    truth, cover = np.zeros((_SIDE, _SIDE), np.uint8), np.zeros((_SIDE, _SIDE))
    place = tuple(slice((_SIDE - size) // 2, (_SIDE - size) // 2 + size) for size in np.minimum(mask.shape, _SIDE))
    inner = tuple(
        slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(mask.shape, np.minimum(mask.shape, _SIDE), strict=True)
    )
    laid = canvas.copy()
    laid[place], truth[place], cover[place] = moved[inner], mask[inner], 1
    foreground = ndimage.gaussian_filter((truth > 0).astype(float), 2)
    alpha = np.maximum(ndimage.gaussian_filter(cover, 6), foreground)[..., None]
    canvas = canvas * (1 - alpha) + laid * alpha
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    for _ in range(rng.integers(0, 14)):
        y, x, radius, stretch = *rng.uniform(0, _SIDE, 2), rng.uniform(24, 32), rng.uniform(0.8, 1.2)
        far = np.hypot((rows - y) / stretch, (columns - x) * stretch) / radius
        if not ((far < 1.05) & (truth > 0)).any():
            disk = (0.6 + 0.4 * np.clip(far, 0, 1)) / (1 + np.exp((far - 1) * 25))
            canvas = np.maximum(canvas, ground + disk[..., None] * np.array([0.12, 0.55, 0.35]))
    return to_image(canvas + rng.normal(0, 0.01, canvas.shape)), truth


def dab(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], rng: np.random.Generator) -> Pair:
    """Turn H&E into DAB-H: hematoxylin paler, little eosin, some of the objects of class 1 brown."""
    amounts = np.clip(optical_density(image) @ np.linalg.inv(_STAINS), 0, None)
    hematoxylin, eosin = amounts[..., 0], amounts[..., 1]
    objects, count = ndimage.label(mask == 1)
    positive = rng.random(count + 1) < rng.uniform(0.05, 0.35)
    positive[0] = False
    brown = ndimage.gaussian_filter(positive[objects].astype(float), 1.2)
    grain = ndimage.gaussian_filter(rng.normal(0, 1, mask.shape), 3)
    dab_amount = np.clip(1.1 * brown * (0.8 + 1.8 * grain + hematoxylin), 0, None)
    blue = 0.12 + 0.45 * hematoxylin * (1 - 0.7 * brown) * rng.uniform(0.6, 1.1) + 0.12 * eosin
    density = blue[..., None] * _STAINS[0] + dab_amount[..., None] * _STAINS[2] + 0.03
    density = ndimage.gaussian_filter(density, (0.6, 0.6, 0))
    return to_image(density + rng.normal(0, 0.015, density.shape)), mask


def smaller(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], rng: np.random.Generator) -> Pair:
    """Shrink to about half the size, with another balance of stains."""
    image, mask = _resize(image, mask, 0.5 * np.exp(rng.uniform(-0.25, 0.25)))
    balance = np.array([[0.9, 0.12, 0.05], [0.1, 0.7, 0.1], [0.05, 0.15, 1.1]])
    density = 0.8 * optical_density(image) @ balance.T + np.array([0.05, 0.06, 0.03])
    return to_image(density**1.1 + rng.normal(0, 0.02, density.shape)), mask


SHIFTS: dict[str, Shift] = {"smear": smear, "dab": dab, "smaller": smaller}
BALANCE_SHIFTS: dict[str, Callable[..., Pair]] = {"sparse": spread_on_glass, "balance": change_balance}
"""Shifts with a ``factor``: the foreground fraction relative to that of the source."""
_FACTOR = 0.1
_KEEP_PIXEL_SIZE = ("dab", "balance")
_ATTEMPTS = 50  # to get a test image with an object: without one a single wrong pixel makes its Dice 0


def make_task(lab: Path, shift: str, out: Path, *, seed: int = 0, factor: float = _FACTOR) -> float:
    """Split a labelled lab: three fifths become the source, a fifth the target, a fifth the test set of both.

    Args:
        lab: Folder with ``images/``, ``masks/`` and ``lab.yaml``.
        shift: One of `SHIFTS` or `BALANCE_SHIFTS`.
        out: Folder of the task; replaced.
        seed: Seed of the split and of the shift.
        factor: Foreground fraction of the target relative to the source, for `BALANCE_SHIFTS`.

    Returns:
        The foreground fraction of the target's images, relative to that of the source's: the factor that was reached.
    """
    shifts = SHIFTS | {name: partial(change, factor=factor) for name, change in BALANCE_SHIFTS.items()}
    foreground: dict[str, list[float]] = {"source": [], "target": []}
    rng = np.random.default_rng(seed)
    shutil.rmtree(out, ignore_errors=True)
    files = sorted((lab / "images").iterdir())
    order = [files[int(index)] for index in rng.permutation(len(files))]
    ends = (round(0.6 * len(order)), round(0.8 * len(order)))
    card = yaml.safe_load((lab / "lab.yaml").read_text())
    for role, change in (("source", None), ("target", shifts[shift])):
        folder = out / role
        parts = {"": order[: ends[0]] if role == "source" else order[ends[0] : ends[1]], "test": order[ends[1] :]}
        for part, chosen in parts.items():
            for kind in ("images", "masks"):
                (folder / part / kind).mkdir(parents=True, exist_ok=True)
            for file in chosen:
                pair = read_image(file), read_mask(lab / "masks" / f"{file.stem}.png")
                image, mask = pair if change is None else change(*pair, rng)
                for _ in range(_ATTEMPTS):
                    if change is None or mask.any() or not part:
                        break
                    image, mask = change(*pair, rng)
                if not part:
                    foreground[role].append(float((mask > 0).mean()))
                write_png(folder / part / "images" / f"{file.stem}.png", image)
                write_png(folder / part / "masks" / f"{file.stem}.png", mask)
        stated: dict[str, Any] = {"lab": f"{out.name}-{role}".lower(), "labelled": role == "source"}
        if change is not None and shift not in _KEEP_PIXEL_SIZE:
            stated["mpp"] = None
        (folder / "lab.yaml").write_text(yaml.safe_dump(card | stated))
    shutil.rmtree(out / "target" / "masks")
    return float(np.mean(foreground["target"]) / np.mean(foreground["source"]))


def _resize(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], zoom: float) -> Pair:
    size = max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom))
    smooth = Image.Resampling.BICUBIC if zoom > 1 else Image.Resampling.BOX
    return (
        np.asarray(Image.fromarray(image).resize(size, smooth)),
        np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)),
    )


def main(arguments: list[str] | None = None) -> None:
    """Create a development task."""
    parser = argument_parser("benchmarks.adaptation.development", __doc__)
    parser.add_argument("--lab", type=Path, required=True, help="a labelled lab's folder")
    parser.add_argument("--shift", choices=[*SHIFTS, *BALANCE_SHIFTS], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--factor", type=float, default=_FACTOR, metavar="TIMES",
                        help=f"foreground relative to the source, of sparse and balance ({_FACTOR:g})")  # fmt: skip
    chosen = parser.parse_args(arguments)
    reached = make_task(chosen.lab, chosen.shift, chosen.out, seed=chosen.seed, factor=chosen.factor)
    print(f"foreground of the target: {reached:.2f} times that of the source")
    print(f"{chosen.out}: run  python -m benchmarks.adaptation --data {chosen.out.parent} --task {chosen.out.name}")


if __name__ == "__main__":
    main()
