"""The readers that are tried, and one attempt: damage a sound file and read it."""

import logging
import os
import random
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path

from microseg.errors import MicrosegError
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import SEEDS

__all__ = ["READERS", "damaged_files", "prepare", "try_inputs"]


def _image(path: Path) -> None:
    from microseg.slides.images import read_image
    from microseg.slides.pixel_size import image_mpp
    from microseg.slides.readers import open_slide

    image_mpp(path)
    pixels = read_image(path)
    assert pixels.dtype == "uint8", pixels.dtype
    with open_slide(path) as slide:  # the other way to the same pixels
        assert (slide.height, slide.width) == pixels.shape[:2], "sizes of image and slide differ"
        height, width = min(64, slide.height), min(64, slide.width)
        region = slide.read_region(0, 0, 0, width, height)
    assert (region == pixels[:height, :width]).all(), "image and slide differ"


def _channels(path: Path) -> None:
    from microseg.slides.channels import Channel, ReadOptions
    from microseg.slides.images import read_image
    from microseg.slides.readers import channel_counts, open_slide

    channels = (Channel("a", (1,)),)
    channel_counts(path, channels)
    pixels = read_image(path, options=ReadOptions(channels=channels))
    assert (pixels[..., 0] == pixels[..., 2]).all(), "one channel is gray"
    with open_slide(path, ReadOptions(channels=channels)) as slide:
        assert (slide.height, slide.width) == pixels.shape[:2], "sizes of image and slide differ"
        region = slide.read_region(0, 0, 0, min(64, slide.width), min(64, slide.height))
    assert (region == pixels[:64, :64]).all(), "image and slide differ"


def _slide(path: Path) -> None:
    from microseg.slides.readers import is_slide, open_slide

    is_slide(path, megapixels=16)
    with open_slide(path) as slide:
        if slide.width * slide.height < 10**6:
            slide.thumbnail(32)
        slide.read_region(0, 0, 0, min(16, slide.width), min(16, slide.height))


def _annotation(path: Path) -> None:
    from microseg.annotations.classes import LabelClasses
    from microseg.annotations.files import AnnotatedImage
    from microseg.annotations.formats import read_annotation

    image, classes = AnnotatedImage("a.png", 24, 16, 0.5), LabelClasses(("background", "gland"), regions=None)
    read_annotation(path, image, classes).read()


def _mask(path: Path) -> None:
    from microseg.annotations.index_masks import read_mask

    read_mask(path)
    _annotation(path)


def _lab(path: Path) -> None:
    from microseg.datasets.lab import read_lab_metadata

    read_lab_metadata(path.parent)


def _slide_table(path: Path) -> None:
    from microseg.datasets.slides import read_slides

    read_slides(path.parent)


def _history(path: Path) -> None:
    from microseg.datasets.versions.history import LocalHistory

    LocalHistory(path.parent).read("north")


def _decision(path: Path) -> None:
    from types import SimpleNamespace
    from typing import Any

    from microseg.registry.decision import Decision

    tags = dict(line.partition("=")[::2] for line in path.read_text("utf-8", "replace").splitlines())
    version: Any = SimpleNamespace(version=2, tags=tags)
    if (decision := Decision.from_tags(version)) is not None:
        list(decision.markdown())


def _folder(path: Path) -> None:
    """A slide of several files, of which one is damaged."""
    from microseg.slides.folder import list_images

    root = next(folder for folder in (path, *path.parents) if folder.name == "slides")
    for image in list_images(root).images:
        _slide(image)


def _params(path: Path) -> None:
    from microseg.config.settings import load_settings

    os.environ["MICROSEG_PARAMS"] = str(path)
    load_settings()


def _table(path: Path) -> None:
    from microseg.datasets.image_table import read_image_table

    read_image_table(path.parent)


def _manifest(path: Path) -> None:
    from microseg.datasets.manifest import read_manifest

    read_manifest(path.parent)


def _record(path: Path) -> None:
    from microseg.outputs.record import read_record

    read_record(path)


def _onboarding(path: Path) -> None:
    from microseg.datasets.onboarding import OnboardingStore

    OnboardingStore(path.parent).read("north")


def _reference(path: Path) -> None:
    from microseg.models.reference_distribution import ReferenceDistribution
    from microseg.parsing import parse_json, read_text

    ReferenceDistribution.from_dict(parse_json(read_text(path)))


def _network(path: Path) -> None:
    from microseg.models.files import load_network

    load_network(path.parent)


def _webhook(path: Path) -> None:
    from microseg.registry.webhooks import parse_webhook, sign_webhook

    body, now = path.read_bytes(), str(int(time.time()))
    headers = {
        "X-MLflow-Delivery-Id": "1",
        "X-MLflow-Timestamp": now,
        "X-MLflow-Signature": sign_webhook("secret", "1", now, body),
    }
    parse_webhook(headers, body, "secret")


READERS: Mapping[str, Callable[[Path], None]] = {
    "images": _image,
    "channels": _channels,
    "masks": _mask,
    "slides": _slide,
    "annotations": _annotation,
    "lab.yaml": _lab,
    "params.yaml": _params,
    "images.csv": _table,
    "manifest.csv": _manifest,
    "records": _record,
    "slides.json": _slide_table,
    "history": _history,
    "decision tags": _decision,
    "dicom": _folder,
    "zarr": _folder,
    "onboarding": _onboarding,
    "reference": _reference,
    "safetensors": _network,
    "network.json": _network,
    "webhooks": _webhook,
}


_TOGETHER = ("dicom", "zarr")  # all files are those of one slide


@cache
def _seeds(reader: str) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    files = SEEDS[reader]()
    return [it for it in files if it[0][0] != "="], [(name[1:], data) for name, data in files if name[0] == "="]


def damaged_files(reader: str, seed: int) -> list[tuple[str, bytes]]:
    """The files of one attempt: a damaged one, and those that are read with it."""
    sound, beside = _seeds(reader)
    rng = random.Random(f"{reader} {seed}")
    name, data = sound[seed] if seed < len(sound) else rng.choice(sound)
    damaged = mutate(data, rng) if seed >= len(sound) else data
    if reader in _TOGETHER:
        beside = [it for it in sound if it[0] != name]
    if reader == "safetensors" and seed % 2:  # what is read where the file itself is harmful: its hash is right
        before, after = (sha256(content).hexdigest().encode() for content in (data, damaged))
        beside = [(other, content.replace(before, after)) for other, content in beside]
    return [(name, damaged), *beside]


def prepare(reader: str) -> None:
    """Import what the reader needs, by reading the sound files."""
    try_inputs(reader, range(len(_seeds(reader)[0])))


def try_inputs(reader: str, seeds: range) -> tuple[int, int, list[tuple[int, str]], float, int]:
    """Read some damaged files, in this process.

    Returns:
        How many were accepted, how many were refused by an error of microseg, the others with their exception, the
        processor time of the slowest in seconds, and the largest memory of the process in MiB.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    accepted, refused, foreign, slowest = 0, 0, [], 0.0
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None, prefix="microseg-fuzz-") as folder:
        for seed in seeds:
            files = damaged_files(reader, seed)
            for name, data in files:
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            started = time.process_time()
            try:
                READERS[reader](Path(folder) / files[0][0])
                accepted += 1
            except MicrosegError:
                refused += 1
            except MemoryError:
                raise
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # those of Rust are no Exception
                foreign.append((seed, f"{type(error).__name__}: {error}"[:200]))
            slowest = max(slowest, time.process_time() - started)
    return accepted, refused, foreign, slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
