"""Pages of the data sets: what each one is, and its results; only of those that have results."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.adaptation.synthetic import FAMILIES
from benchmarks.report.pages import DOCS, RESULTS, load, render

__all__ = ["DATA_SETS", "DataSet", "data_set_pages", "navigation"]


@dataclass(frozen=True)
class DataSet:
    """A pair of labs, or a family of generated ones.

    Attributes:
        title: Title of its page.
        source: The labelled lab: stain, images, origin.
        target: The unlabelled lab.
        change: What changes between the labs.
        images: Picture of both labs in the folder of the pages, of generated ones only; empty for none.
    """

    title: str
    source: str
    target: str
    change: str
    images: str = ""


_MONUSEG = "`he`: H&E, 32 images and 10 for testing, 512 × 512 (MoNuSeg 2018)"
_BOWL = "Data Science Bowl 2018, corrected masks"

DATA_SETS: Final[dict[str, DataSet]] = {
    "cytology": DataSet(
        "Nuclei, tissue → smear",
        _MONUSEG,
        f"`pap`: gray brightfield smears, 8 images and 8 for testing, 1024 × 1024 ({_BOWL})",
        "Color, preparation and class balance: nuclei are 24 % of the source's area and 2 % of the target's. A network "
        "that marks whole cells in place of nuclei looks plausible without labels.",
    ),
    "wbc": DataSet(
        "White blood cells",
        "`jtsc`: 240 images and 60 for testing, 120 × 120 (Zheng et al. 2018)",
        "`cellavision`: 60 images and 40 for testing, 300 × 300 (Zheng et al. 2018)",
        "Lab, stain, scanner and scale. Red blood cells are in the target only.",
    ),
    "glands": DataSet(
        "Glands, colon → prostate",
        "`colon_he`: H&E of the colon, 85 images and 80 for testing, 388 × 261 (GlaS, halved)",
        "`prostate_he`: H&E of the prostate, 9 images and 9 for testing, 256 × 256 (RINGS)",
        "Organ, lab, scale and color.",
    ),
    "plasma": DataSet(
        "Plasma cells",
        "`camera_1`: 120 images and 20 for testing, 256 × 256 (SegPC-2021, halved)",
        "`camera_2`: 27 images and 27 for testing, 256 × 256 (SegPC-2021, halved)",
        "Camera and lab. Other cells look alike.",
    ),
    "nuclei": DataSet(
        "Nuclei, H&E → DAB",
        _MONUSEG,
        "`ihc`: DAB and hematoxylin, 8 images and 3 for testing, 512 × 512 (DeepLIIF samples)",
        "Stain, the setting of DAPNet. Three test images are few: differences of 0.02 are within chance.",
    ),
    "glomeruli": DataSet(
        "Glomeruli, Masson → PAS",
        "`masson`: Masson's trichrome, 32 images and 11 for testing, 340 × 256 "
        "(Glomeruli-Instance-Segmentation, quarter size)",
        "`pas`: periodic acid-Schiff, 11 images and 11 for testing, 340 × 256 (the same)",
        "Stain.",
    ),
    "em_mitochondria": DataSet(
        "Mitochondria, electron microscopy",
        "`vnc`: 16 images and 4 for testing, 512 × 512 (groundtruth-drosophila-vnc)",
        "`fafb`: 4 images and 4 for testing, 868 × 868 (DA-MitoSeg, halved)",
        "Electron microscope, preparation, gray values and scale.",
    ),
    "nuclei_gbm": DataSet(
        "Nuclei, H&E of two centers",
        "`gbm`: H&E, 30 images and 10 for testing, 512 × 512, nuclei numbered (pengyzhang/cell_seg_matlab)",
        "`tcga`: H&E, 18 images and 18 for testing, 512 × 512, nuclei numbered (the same)",
        "Center. Nuclei are dense and touch.",
    ),
    "nuclei_fluo": DataSet(
        "Nuclei, fluorescence",
        f"`small`: 75 images and 25 for testing, 256 × 256, nuclei numbered ({_BOWL})",
        f"`large`: 30 images and 30 for testing, 360 × 360, nuclei numbered ({_BOWL})",
        "Magnification and brightness.",
    ),
    "synthetic/balance": DataSet(
        "Changed class balance",
        "Generated: cells or glands in H&E, with true masks",
        "Generated: another stain, and another share of foreground; 24 images of 256 × 256",
        "Cells in tissue at 0.05, 0.2, 1, 2 and 4 times the source's share, glands at 0.05, 0.2 and 1.4 times, bare "
        "nuclei on glass (`spread`) and a smear with large cell bodies at about 0.06 times, three quarters or half of "
        "the slides empty, one of two kinds of cell absent or dominating. Test images always have an object: one wrong "
        "pixel makes the Dice of an image without one 0.",
        "balance.jpg",
    ),
    "synthetic/robustness": DataSet(
        "What labs send",
        "Generated: glands or cells in H&E, with true masks",
        "Generated: DAB and hematoxylin, 24 images of 256 × 256 unless stated",
        "Empty slides, artifacts (pen, fold, defocus, air bubbles) on half of the images, 5 images, 5,000 images of "
        "128 × 128, two stains or three scanners in one lab.",
        "robustness.jpg",
    ),
}
"""Data sets by the name of their task or family."""

_NAVIGATION = re.compile(r"( +)# data sets, .*?\n(.*?) +# end of data sets\n", re.DOTALL)


def data_set_pages(folder: Path, results: Path = RESULTS) -> dict[Path, str]:
    """Text of the page of each data set that has results, by its path.

    Args:
        folder: Folder of the pages.
        results: Folder of the results.
    """
    rows = [row for result in load("adaptation/*", results) if "rows" in result for row in result["rows"]]
    measured = {row["task"] for row in rows if row["method"] not in ("source_only", "upper_bound")}
    pages = {}
    for name, data_set in DATA_SETS.items():
        tasks = [task for task in FAMILIES.get(name, (name,)) if task in measured]
        if tasks:
            page = folder / f"{name.replace('/', '-')}.md"
            pages[page] = _page(name, data_set, tasks, page, results)
    return pages


def _page(name: str, data_set: DataSet, tasks: Iterable[str], page: Path, results: Path) -> str:
    lines = [
        f"# {data_set.title}",
        f"Task `{name}` of [`python -m benchmarks.adaptation`](../adaptation.md).",
        f"| lab | images |\n| --- | --- |\n| source, labelled | {data_set.source} |\n"
        f"| target, unlabelled | {data_set.target} |",
        f"**What changes:** {data_set.change}",
    ]
    if data_set.images and (page.parent / data_set.images).exists():
        lines.append(f"![Above, images of source labs; below, of target labs]({data_set.images})")
    lines.append("## Results\n\nDice on held-out images, before → after; *default* is what `microseg adapt` uses.")
    if name in FAMILIES:
        lines.append("Tasks of this family that have no table here have not been measured.")
    for task in tasks:
        if task != name:
            lines.append(f"### {task.removeprefix('synthetic_').replace('_', ' ')}")
        lines.append(render("adaptation/*", "each-seed", page, results, task).strip())
    return "\n\n".join(lines) + "\n"


def navigation(text: str, pages: Iterable[Path]) -> str:
    """mkdocs.yml with the pages of the data sets between its two comments."""
    entries = {page: DATA_SETS[name] for name in DATA_SETS for page in pages if page == _path(name)}

    def part(found: re.Match[str]) -> str:
        indent = found[1]
        lines = [f"{indent}- {it.title}: {page.relative_to(DOCS).as_posix()}\n" for page, it in entries.items()]
        head = found[0].splitlines(keepends=True)[0]
        return f"{head}{''.join(lines)}{indent}# end of data sets\n"

    return _NAVIGATION.sub(part, text)


def _path(name: str) -> Path:
    return DOCS / "benchmarks" / "adaptation" / f"{name.replace('/', '-')}.md"
