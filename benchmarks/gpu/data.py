"""Data of the GPU benchmark: labs of generated images, a trained network, images and a slide."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gpu.measure import Results, Setup
from benchmarks.workload import make_slide, write_image
from microseg.annotations.index_masks import read_mask
from microseg.config.training_params import ArchitectureSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.datasets.ingest import ingest_lab
from microseg.models.files import load_network, save_network
from microseg.models.losses import segmentation_loss
from microseg.models.network import PyramidSegmenter, configure_network
from microseg.slides.images import read_image
from microseg.synthetic.cells import CELLS_HE
from microseg.synthetic.labs import LAB_A, LAB_B, generate_lab

__all__ = ["MPP", "image_links", "lab", "network", "run", "slide_file", "test_folder", "tiny_lab"]

MPP = 0.5
"""Microns per pixel of the images with nuclei and of the slide."""
_BLOCK = 512


def run(setup: Setup, results: Results) -> None:
    """Generate everything; nothing of it is measured."""
    quick = setup.quick
    if not (setup.folder / "tiny").is_dir():
        _generate_labs(setup)
    if not (setup.folder / "images").is_dir():
        nuclei = lab(setup, "nuclei")
        blocks = [read_image(nuclei.image_path(row)) for row in nuclei.rows]
        kinds, across = (2, 2) if quick else (16, 2)
        for number in range(kinds):
            rows = [[blocks[(number + 5 * y + 3 * x) % len(blocks)] for x in range(across)] for y in range(across)]
            pixels = np.concatenate([np.concatenate(row, axis=1) for row in rows])
            write_image(setup.folder / "images" / f"{number}.tif", np.ascontiguousarray(pixels), mpp=MPP)
        make_slide(setup.folder / "slide.tif", side=1024 if quick else 12288, blocks=blocks[:8], mpp=MPP)
    if not (setup.folder / "network").is_dir():
        _train_network(setup)
    results.add("data", sum(file.stat().st_size for file in setup.folder.rglob("*") if file.is_file()) / 1e6, "MB")


def _generate_labs(setup: Setup) -> None:
    incoming, quick = setup.folder / "incoming", setup.quick
    images, side = (8, 128) if quick else (32, _BLOCK)
    plan = {
        "nuclei": (CELLS_HE, {"images": images, "size": side, "mpp": MPP, "labelled": True}),
        "source": (LAB_A, {"images": 8 if quick else 40, "size": 64 if quick else 256, "labelled": True}),
        "target": (LAB_B, {"images": 6 if quick else 24, "size": 64 if quick else 256, "labelled": False}),
        "tiny": (LAB_A, {"images": 8, "size": 64, "labelled": True}),
    }
    tests = {"source": 12, "target": 12}
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), mp_context=get_context("fork")) as pool:
        generating = [
            pool.submit(generate_lab, incoming / name, profile, test_images=tests.get(name, 0), seed=1, **options)  # type: ignore[arg-type]
            for name, (profile, options) in plan.items()
        ]
        for one in generating:
            one.result()
    for name in plan:
        ingest_lab(incoming / name, setup.folder / name, setup.folder / "quarantine", test_fraction=0.0)


def network(setup: Setup) -> PyramidSegmenter:
    """The trained network, in evaluation mode, on the CPU."""
    return load_network(setup.folder / "network").eval()


def lab(setup: Setup, name: str) -> LabDataset:
    """Dataset of a lab: ``nuclei``, labelled; ``source`` and ``target`` of the adaptation."""
    return open_lab_dataset(next(it for it in (setup.folder / name).iterdir() if it.is_dir()))


def tiny_lab(folder: Path) -> LabDataset:
    """Generate and ingest a labelled lab of eight images of 64 px."""
    incoming = generate_lab(folder / "incoming", LAB_A, images=8, size=64, labelled=True, seed=0)
    return open_lab_dataset(ingest_lab(incoming, folder / "labs", folder / "quarantine", test_fraction=0.0).folder)


def test_folder(setup: Setup, name: str) -> Path:
    """Incoming folder of a lab, with its held-out test images."""
    return setup.folder / "incoming" / name


def slide_file(setup: Setup) -> Path:
    """The slide."""
    return setup.folder / "slide.tif"


def image_links(setup: Setup, count: int) -> list[Path]:
    """Paths of images, all in the page cache; beyond the sixteen generated ones they are links to these."""
    kinds = sorted((setup.folder / "images").iterdir())
    folder = setup.folder / "links"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"image{number:05d}.tif" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.is_symlink():
            path.symlink_to(kinds[number % len(kinds)])
    return paths


def _train_network(setup: Setup) -> None:
    """Train on the nuclei with plain PyTorch, so that the number of objects is realistic whatever else fails."""
    nuclei = lab(setup, "nuclei")
    rows = nuclei.select(labelled=True)
    pixels = np.stack([read_image(nuclei.image_path(row)) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (N, 3, H, W) uint8
    masks = torch.from_numpy(np.stack([read_mask(nuclei.mask_path(row)) for row in rows]))  # (N, H, W)
    torch.manual_seed(0)
    config = configure_network(ArchitectureSettings(), nuclei.metadata.classes, MPP)
    trained = PyramidSegmenter(config).to(setup.device).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=2e-3)
    for some in _batches(len(rows), 4 if setup.quick else 150, 4 if setup.quick else 8):
        logits = trained(images[some].to(setup.device).float() / 255)
        loss = segmentation_loss(logits, masks[some].to(setup.device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
    save_network(setup.folder / "network", trained.eval().cpu())


def _batches(count: int, steps: int, size: int) -> Iterator[npt.NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return (rng.choice(count, size, replace=False) for _ in range(steps))
