"""Data of the speed benchmarks: a network, images of synthetic sections, and slides of any size."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from torch import nn
from torch.nn import functional

from microseg.annotations.index_masks import read_mask
from microseg.config.training_params import ArchitectureSettings
from microseg.models.files import load_network, save_network
from microseg.models.network import PyramidSegmenter, configure_network
from microseg.slides.images import read_image, write_png
from microseg.synthetic.labs import LAB_A, generate_image, generate_lab

if TYPE_CHECKING:  # MLflow takes seconds
    from microseg.registry.registry import Registry
    from microseg.registry.version import ModelVersion

__all__ = [
    "MPP",
    "load_or_make_network",
    "make_different_images",
    "make_images",
    "make_network",
    "make_slide",
    "promote_network",
    "write_image",
]

MPP = 1.0
"""Microns per pixel of all generated images."""
_BLOCK = 512  # pixels; side of the sections that slides consist of
_KINDS = 8


def make_network(folder: Path, *, encoder: str = "tf_efficientnet_lite0", steps: int = 40) -> None:
    """Train a network for a few steps, so that its masks are plausible, and save it.

    Args:
        folder: Folder of the network.
        encoder: Encoder of the network.
        steps: Training steps.
    """
    torch.manual_seed(0)
    lab = generate_lab(folder / "lab", LAB_A, images=8, size=256, mpp=MPP, labelled=True, test_images=0, seed=0)
    paths = sorted((lab / "images").iterdir())
    pixels = np.stack([read_image(path) for path in paths])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(np.stack([read_mask(lab / "masks" / path.name) for path in paths])).long()
    config = configure_network(ArchitectureSettings(encoder=encoder), ("background", "gland"), MPP)
    network = PyramidSegmenter(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(steps):
        some = torch.arange(4) + 4 * (step % 2)
        loss = functional.cross_entropy(network(images[some]), masks[some])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    save_network(folder, network.eval())


def load_or_make_network(trained: Path | None, folder: Path, *, encoder: str) -> PyramidSegmenter:
    """Load a trained network, or generate one with `make_network`; in evaluation mode.

    Args:
        trained: Folder of the trained network; None to generate one.
        folder: Folder of the generated network.
        encoder: Encoder of the generated network.
    """
    if trained is None:
        make_network(folder, encoder=encoder)
    return load_network(trained or folder).eval()


def promote_network(registry: Registry, folder: Path, *, encoder: str) -> ModelVersion:
    """Generate a network with `make_network`, register it and put it into production.

    Args:
        registry: The registry.
        folder: Folder of the generated network.
        encoder: Encoder of the generated network.
    """
    make_network(folder, encoder=encoder)
    with registry.runs.start("benchmark") as run:
        example = np.zeros((64, 64, 3), np.uint8)
        version = registry.versions.register(run, folder, example=example, method="none", description="None.")
    registry.production.promote(version)
    return version


def make_different_images(folder: Path, *, count: int, side: int) -> None:
    """Write one section as PNG files that differ in a pixel."""
    folder.mkdir(parents=True)
    section, _ = generate_image(LAB_A, side, MPP, seed=0)
    for number in range(count):
        image = section.copy()
        image[0, 0] = (number // 256, number % 256, 0)
        write_png(folder / f"{number:04d}.png", image)


def make_images(folder: Path, *, count: int, side: int) -> list[Path]:
    """Write RGB images of sections as TIFF, compressed."""
    folder.mkdir(parents=True)
    blocks = _sections(folder.parent / "sections")
    paths = [folder / f"{number}.tif" for number in range(count)]
    for number, path in enumerate(paths):
        across = -(-side // _BLOCK)
        rows = [[blocks[(number + 3 * y + x) % _KINDS] for x in range(across)] for y in range(across)]
        pixels = np.concatenate([np.concatenate(row, axis=1) for row in rows])[:side, :side]
        write_image(path, np.ascontiguousarray(pixels))
    return paths


def make_slide(
    path: Path,
    *,
    side: int,
    height: int | None = None,
    tissue: float = 1.0,
    blocks: Sequence[npt.NDArray[np.uint8]] | None = None,
    mpp: float = MPP,
) -> None:
    """Write a tiled pyramidal TIFF, tissue on the left and glass on the right.

    Args:
        path: File to write.
        side: Width in pixels.
        height: Height in pixels; None for a square slide.
        tissue: Fraction of the width that shows tissue, 0..1.
        blocks: Square images that the tissue is composed of, of one size, a multiple of 64; by default sections.
        mpp: Microns per pixel.
    """
    blocks = list(blocks) if blocks else _sections(path.parent / "sections")
    block = len(blocks[0])
    glass = np.full_like(blocks[0], 244)
    height = side if height is None else height
    across, down = -(-side // block), -(-height // block)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(3):
            step = 2**level
            encoded = [zlib.compress(one[::step, ::step].tobytes()) for one in (*blocks, glass)]
            size = block // step

            def tiles(encoded: list[bytes] = encoded) -> Iterator[bytes]:
                for y in range(down):
                    for x in range(across):
                        yield encoded[(3 * y + x) % len(blocks) if x < tissue * across else -1]

            dots = 1e4 / mpp / step
            tiff.write(
                tiles(),
                shape=(-(-height // step), -(-side // step), 3),
                dtype=np.uint8,
                tile=(size, size),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
                resolution=(dots, dots),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def write_image(path: Path, pixels: npt.NDArray[np.uint8], *, mpp: float = MPP) -> None:
    """Write an RGB image as TIFF, compressed, with its pixel size; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dots = 1e4 / mpp
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        compression="zlib",
        tile=(256, 256),
        resolution=(dots, dots),
        resolutionunit="CENTIMETER",
    )


def _sections(folder: Path) -> list[npt.NDArray[np.uint8]]:
    if not folder.exists():
        generate_lab(folder, LAB_A, images=_KINDS, size=_BLOCK, mpp=MPP, labelled=True, test_images=0, seed=1)
    return [read_image(path) for path in sorted((folder / "images").iterdir())]
