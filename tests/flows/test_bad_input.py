"""Invalid input ends with a message that says what to do and a non-zero exit code, and writes nothing by halves."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from prefect.client.orchestration import get_client

from flows import adapt, demo, evaluate, ingest, promote, rollback, segment, train
from microseg.config.settings import load_settings
from microseg.datasets.incoming import read_incoming_folder
from microseg.slides.images import read_image, write_png

Run = Callable[..., Result]


def assert_rejected(result: Result, *messages: str) -> None:
    output = " ".join((result.stdout + result.stderr).split())
    assert result.exit_code == 1, output
    for message in ("microseg: ", *messages):
        assert message in output
    assert "Traceback" not in output


def lab_folder(folder: Path, card: str = "lab: lab_c\nstain: H&E\nclasses: [background, gland]\n") -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "lab.yaml").write_text(card)
    return folder


@pytest.fixture
def flawed(incoming_labs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A lab's folder with two valid images and one of each fault."""
    lab_a, folder = incoming_labs[0], lab_folder(tmp_path / "flawed")
    images, masks = folder / "images", folder / "masks"
    masks.mkdir()
    for number, name in enumerate(("good_1", "good_2", "other_size", "unknown_class")):
        shutil.copy(lab_a / "images" / f"lab_a_00{number}.png", images / f"{name}.png")
        shutil.copy(lab_a / "masks" / f"lab_a_00{number}.png", masks / f"{name}.png")
    write_png(masks / "other_size.png", np.zeros((16, 16), np.uint8))
    write_png(masks / "unknown_class.png", np.full((64, 64), 7, np.uint8))
    write_png(masks / "alone.png", np.zeros((64, 64), np.uint8))
    whole = (lab_a / "images" / "lab_a_004.png").read_bytes()
    (images / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (images / "unreadable.png").write_text("no image")
    twice = read_image(lab_a / "images" / "lab_a_005.png")
    write_png(images / "twice.png", twice)
    write_png(images / "twice.tif.png", twice)
    shutil.copy(images / "twice.png", images / "TWICE.PNG")
    return folder


def test_quarantines_invalid_files_with_the_reason(fresh: Path, run: Run, flawed: Path) -> None:
    result = run(ingest.command, flawed)
    assert result.exit_code == 0, result.output
    quarantine = fresh / "data" / "quarantine" / "lab_c"
    assert "".join(str(quarantine).split()) in "".join(result.stdout.split())  # wherever the console breaks it
    reasons = pd.read_csv(quarantine / "reasons.csv").set_index("file")["reason"]
    for file, reason in {
        "masks/other_size.png": "expected the image's size",
        "images/other_size.png": "its annotation other_size.png is rejected",
        "masks/unknown_class.png": "expected class indices",
        "masks/alone.png": "found none",
        "images/truncated.png": "",
        "images/unreadable.png": "",
        "images/twice.png": "expected a unique name",
        "images/TWICE.PNG": "expected a unique name",
    }.items():
        assert reason in reasons[file]
        assert (quarantine / file).read_bytes() == (flawed / file).read_bytes()
    taken = {path.name for path in (fresh / "data" / "labs" / "lab_c" / "images").iterdir()}
    assert {"good_1.png", "good_2.png"} <= taken
    assert not {name for name in taken if name.startswith(("other", "unknown", "trunc", "unread"))}
    with get_client(sync_client=True) as client:
        assert "rejected-lab-c" in {it.key for it in client.read_artifacts()}


def absent(folder: Path) -> Path:
    return folder / "absent"


def empty(folder: Path) -> Path:
    return lab_folder(folder / "empty")


def without_metadata(folder: Path) -> Path:
    (folder / "no card" / "images").mkdir(parents=True)
    return folder / "no card"


def with_invalid_name(folder: Path) -> Path:
    return lab_folder(folder / "named", "lab: ../Lab C\nstain: H&E\nclasses: [background, gland]\n")


def without_readable_images(folder: Path) -> Path:
    lab = lab_folder(folder / "unreadable")
    (lab / "images" / "a.png").write_text("no image")
    return lab


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (absent, "expected the folder of a lab's images, found none"),
        (empty, "expected images, found none"),
        (without_metadata, "lab.yaml"),
        (with_invalid_name, "Call it 'lab-c'"),
        (without_readable_images, "a.png"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_rejects_a_folder_that_cannot_be_ingested(
    fresh: Path, run: Run, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    record = tmp_path / "record.json"
    assert_rejected(run(ingest.command, make(tmp_path), "--record", record), message)
    assert not [path for path in (fresh / "data" / "labs").glob("*") if not path.name.startswith(".")]
    assert not (fresh / "data" / "history").exists()
    assert not record.exists()


@pytest.mark.parametrize(
    ("flow", "arguments", "messages"),
    [
        (train, ["lab_x"], ["lab 'lab_x', found none", "microseg ingest"]),
        (train, ["../lab_x"], ["lab name"]),
        (adapt, ["lab_x"], ["'production'", "train a first model"]),
        (evaluate, [], ["'candidate'"]),
        (promote, [], ["'candidate'"]),
        (rollback, [], ["'previous'"]),
        (segment, ["absent folder"], ["absent folder", "expected an image or a folder of images"]),
        (demo, ["--source", "lab_x"], ["both --source and --target"]),
        (train, ["lab_x", "--set", "train.step=5"], ["train.step: unknown", "steps"]),
        (train, ["lab_x", "--set", "train.steps=none"], ["train.steps"]),
    ],
)
def test_rejects_commands_in_new_home(
    fresh: Path, run: Run, flow: Any, arguments: list[str], messages: list[str]
) -> None:
    assert_rejected(run(flow.command, *arguments), *messages)


@pytest.mark.parametrize(
    ("flow", "arguments", "messages"),
    [
        (train, ["lab_b"], ["labelled images", "lab_b"]),
        (adapt, ["lab_x"], ["lab 'lab_x', found none"]),
        (adapt, ["lab_b", "--base", "7"], ["version '7'", "2 (production), 1 (previous)"]),
        (adapt, ["lab_b", "--digest", "abc"], ["expected a dataset's digest"]),
        (evaluate, ["7"], ["version '7'"]),
        (segment, ["{lab_b}", "--model", "7"], ["version '7'"]),
        (segment, ["{lab_b}", "--out", "{lab_b}/images"], ["Expected an output folder other than that of the images"]),
        (demo, [], ["is in production and is not from a demo", "MICROSEG_HOME"]),
    ],
)
def test_rejects_invalid_arguments(done: Any, run: Run, flow: Any, arguments: list[str], messages: list[str]) -> None:
    before = done.aliases
    assert_rejected(run(flow.command, *(argument.format(lab_b=done.lab_b) for argument in arguments)), *messages)
    assert done.aliases == before


def test_a_refused_promotion_ends_with_an_error(copied: Any, run: Run, tmp_path: Path) -> None:
    copied.registry.production.roll_back()
    record = tmp_path / "record.json"
    result = run(promote.command, "2", "--set", "gate.min_criterion_gain=1.0", "--record", record)
    assert_rejected(
        result,
        "The gate refused it against version 1. Nothing needs to be done: version 1 stays in production; to promote it "
        "all the same: microseg promote 2 --override REASON",
        "On the target lab augmentation consistency is",
    )
    assert '"verdict": "refused"' in record.read_text()
    assert copied.aliases == {"production": 1}


def test_a_broken_image_does_not_stop_a_batch(copied: Any, run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(copied.lab_b / "images", folder)
    (folder / "broken.png").write_bytes(b"no image")
    result = run(segment.command, folder, "--out", out)
    assert_rejected(result, "1 of 7 images could not be segmented", "failures.csv")
    failures = pd.read_csv(out / "failures.csv")
    assert [Path(image).name for image in failures["image"]] == ["broken.png"]
    assert len(list(out.glob("*.geojson"))) == 6
    assert not list(out.glob("broken*"))


def test_links_lead_to_the_same_folders_for_arrival_and_ingest(fresh: Path, incoming_labs: tuple[Path, Path]) -> None:
    """A dataset of links to files in the drop folder is complete, and its files are ingested."""
    settings = load_settings()
    stored = settings.drop_folder / "stored"
    shutil.copytree(incoming_labs[1], stored)
    folder = settings.drop_folder / "lab_b"
    (folder / "images").mkdir(parents=True)
    for name in ("lab.yaml", *[f"images/{image.name}" for image in (stored / "images").iterdir()]):
        (folder / name).symlink_to(stored / name)
    incoming = read_incoming_folder(folder, roots=settings.allowed_roots, labs=settings.home.labs)
    assert incoming.missing == ""
    result = ingest.ingest(folder)
    assert (result.images, result.rejected) == (len(list((stored / "images").iterdir())), ())
