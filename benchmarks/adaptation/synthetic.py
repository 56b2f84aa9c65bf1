"""Synthetic tasks by name, and families of them: changed class balance, and what labs send.

In ``synthetic/balance`` the target has another stain, and another share of foreground than the source. Shares reached:
cells at 0.05, 0.2, 1, 2 and 4 times (0.6 % to 45 % of the area, from 11 %), glands at 0.05, 0.2 and 1.4 times (more do
not fit beside each other), from 24 % a smear at 0.07 times, in which the nuclei lie in large cell bodies, and bare
nuclei on glass at 0.05 times. In ``synthetic/robustness`` the labs send empty images, artifacts, few or many images, or
mix stains or scanners.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from microseg.annotations.index_masks import read_mask
from microseg.synthetic.cells import CELLS_DAB, CELLS_HE, SMEAR, CellProfile
from microseg.synthetic.labs import LAB_A, LAB_B, LabProfile, MixedLab, Profile, generate_lab

__all__ = ["FAMILIES", "PALE_AMOUNTS", "SYNTHETIC", "SYNTHETIC_TASKS", "SyntheticTask", "make_synthetic_task"]

SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class SyntheticTask:
    """What a synthetic task is generated from.

    Attributes:
        source: Profile of the labelled lab.
        target: Profile of the unlabelled lab.
        test: Profile of the target's test images, where they differ from its other images.
        mpp: Microns per pixel of both labs.
        state_mpp: Whether the target states its microns per pixel.
        images: Unlabelled images of the target.
        side: Side of the target's images, in pixels.
    """

    source: Profile
    target: Profile
    test: Profile | None = None
    mpp: float = 0.5
    state_mpp: bool = True
    images: int = 24
    side: int = 256


_DENSE = replace(CELLS_HE, name="cells_dense", density=5000.0)
_SPREAD = replace(  # stained almost as the source
    CELLS_HE,
    name="cells_spread",
    density=250.0,
    nucleus=(0.50, 0.20, 0.05),
    lymphocyte=(0.75, 0.20, 0.05),
    ground=(0.02, 0.03, 0.02),
)
_TYPES = replace(CELLS_HE, name="types_he", typed=True, density=4000.0, lymphocytes=0.4)
_TYPES_DAB = replace(CELLS_DAB, name="types_dab", typed=True, density=4000.0, lymphocytes=0.4)


def _cells(times: float) -> CellProfile:
    return replace(CELLS_DAB, density=times * CELLS_DAB.density)


def _glands(share: float) -> LabProfile:
    return replace(LAB_B, tissue=replace(LAB_B.tissue, glands=share))


_CROWDED = replace(LAB_B, tissue=replace(LAB_B.tissue, septum=2.0, vessels=0.0, clefts=0.002))

_BALANCE: dict[str, SyntheticTask] = {
    **{f"synthetic_cells_{times:g}": SyntheticTask(CELLS_HE, _cells(times)) for times in (0.05, 0.2, 1.0, 2.0, 4.0)},
    "synthetic_cells_empty": SyntheticTask(CELLS_HE, replace(CELLS_DAB, empty=0.75), CELLS_DAB),
    "synthetic_spread": SyntheticTask(_DENSE, _SPREAD),
    "synthetic_smear": SyntheticTask(_DENSE, SMEAR, state_mpp=False),
    "synthetic_smear_empty": SyntheticTask(_DENSE, replace(SMEAR, empty=0.5), SMEAR, state_mpp=False),
    "synthetic_types_absent": SyntheticTask(_TYPES, replace(_TYPES_DAB, lymphocytes=0.0), _TYPES_DAB),
    "synthetic_types_dominating": SyntheticTask(_TYPES, replace(_TYPES_DAB, lymphocytes=0.92)),
    "synthetic_glands_0.05": SyntheticTask(LAB_A, _glands(0.05), mpp=1.0),
    "synthetic_glands_0.2": SyntheticTask(LAB_A, _glands(0.2), mpp=1.0),
    "synthetic_glands_1.4": SyntheticTask(LAB_A, _CROWDED, mpp=1.0),
}

PALE_AMOUNTS = replace(
    LAB_A.amounts,
    epithelial_nucleus=(0.55, 0.30, 0.0),
    cytoplasm=(0.10, 0.42, 0.0),
    stroma=(0.05, 0.18, 0.0),
    stromal_nucleus=(0.50, 0.30, 0.0),
    muscle=(0.05, 0.60, 0.0),
)
"""Stain amounts of a paler H&E."""

_PALE = replace(
    LAB_B,
    name="pale",
    stain="H&E",
    amounts=PALE_AMOUNTS,
)
_SCANNERS = tuple(
    replace(LAB_B, scanner=replace(LAB_B.scanner, white=white, gamma=gamma, blur=blur))
    for white, gamma, blur in (
        ((0.93, 0.92, 0.86), 1.1, 0.9),
        ((0.98, 0.90, 0.95), 0.8, 0.5),
        ((0.8, 0.86, 0.9), 1.3, 1.6),
    )
)

_ROBUSTNESS: dict[str, SyntheticTask] = {
    "synthetic_empty": SyntheticTask(LAB_A, replace(LAB_B, empty=0.75), LAB_B, mpp=1.0),
    "synthetic_artifacts": SyntheticTask(LAB_A, replace(LAB_B, artifacts=0.5), mpp=1.0),
    "synthetic_5_images": SyntheticTask(LAB_A, LAB_B, mpp=1.0, images=5),
    "synthetic_5000_images": SyntheticTask(CELLS_HE, CELLS_DAB, images=5000, side=128),
    "synthetic_mixed_stains": SyntheticTask(LAB_A, MixedLab("mixed_stains", (LAB_B, _PALE)), mpp=1.0),
    "synthetic_mixed_scanners": SyntheticTask(LAB_A, MixedLab("mixed_scanners", _SCANNERS), mpp=1.0),
}

FAMILIES: dict[str, tuple[str, ...]] = {
    "synthetic/balance": tuple(_BALANCE),
    "synthetic/robustness": tuple(_ROBUSTNESS),
}
"""Names of the tasks of each family."""

SYNTHETIC_TASKS: dict[str, SyntheticTask] = {
    SYNTHETIC: SyntheticTask(LAB_A, LAB_B, mpp=1.0),
    **_BALANCE,
    **_ROBUSTNESS,
}

_SOURCE_IMAGES, _SOURCE_SIDE, _TEST_IMAGES = 40, 256, 12


def make_synthetic_task(name: str, folder: Path) -> tuple[Path, Path]:
    """Generate the labs of a task where they are missing.

    Tasks with the same source share its folder, and thus its dataset. Test images without any object are left out: a
    single wrong pixel would make their Dice 0.

    Args:
        name: One of `SYNTHETIC_TASKS`.
        folder: Folder of all synthetic tasks.

    Returns:
        Folders of the labelled and of the unlabelled lab.
    """
    task = SYNTHETIC_TASKS[name]
    group = folder / f"from_{task.source.name}"  # holds all test images, which training must not read
    source, target = group / task.source.name, group / name / task.target.name
    if not source.exists():
        generate_lab(
            source,
            task.source,
            images=_SOURCE_IMAGES,
            size=_SOURCE_SIDE,
            mpp=task.mpp,
            labelled=True,
            test_images=_TEST_IMAGES,
            seed=100,
        )
    if not target.exists():
        generate_lab(
            target,
            task.target,
            images=task.images,
            size=task.side,
            mpp=task.mpp,
            state_mpp=task.state_mpp,
            labelled=False,
            test_images=_TEST_IMAGES,
            test_profile=task.test,
            seed=101,
        )
    for mask in sorted((target / "test" / "masks").iterdir()):
        if not read_mask(mask).any():
            (target / "test" / "images" / mask.name).unlink()
            mask.unlink()
    return source, target
