from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from microseg import files
from microseg.datasets import image_parts
from microseg.datasets.decoded import DecodedFiles
from microseg.datasets.image_parts import resample
from microseg.datasets.sampling import (
    CropSampler,
    Sample,
    evenly_spaced,
    labelled_parts,
    step_generator,
)
from microseg.datasets.windows import cut_windows
from microseg.errors import DataError, ImageReadError
from microseg.slides.images import read_image, write_png
from microseg.slides.region import SlideRegion


def gray(level: int, height: int = 20, width: int = 24) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


def write_sample(folder: Path, name: str, image: npt.NDArray[np.uint8], zoom: float = 1.0, mask: Any = None) -> Sample:
    write_png(folder / f"{name}.png", image)
    if mask is not None:
        write_png(folder / f"{name}-mask.png", mask)
    return Sample(folder / f"{name}.png", None if mask is None else folder / f"{name}-mask.png", zoom)


@pytest.fixture
def grays(tmp_path: Path) -> list[Sample]:
    """Seven images, the level of each its number times 10; the mask is its number."""
    return [write_sample(tmp_path, str(n), gray(10 * n), mask=np.full((20, 24), n, np.uint8)) for n in range(7)]


def numbers(sampler: CropSampler, step: int, **share: int) -> list[int]:
    return [round(float(image.mean()) * 25.5) for image in sampler.draw(step, **share).images]


def test_draws_every_image_once_per_epoch(grays: list[Sample]) -> None:
    sampler = CropSampler(grays, size=8, batch=3, seed=1, zoom=(0.8, 1.2))
    drawn = [number for step in range(7) for number in numbers(sampler, step)]
    epochs = [drawn[start : start + 7] for start in range(0, 21, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batch_depends_on_seed_and_step_only(grays: list[Sample]) -> None:
    one, other = (CropSampler(grays, size=8, batch=3, seed=1, zoom=(0.8, 1.2)) for _ in range(2))
    forwards = [one.draw(step) for step in range(5)]
    torch.manual_seed(9)
    np.random.seed(9)
    for step in (4, 0, 2):
        images, masks, _ = other.draw(step)
        assert torch.equal(images, forwards[step].images)
        assert masks is not None
        assert torch.equal(masks, forwards[step].masks)  # type: ignore[arg-type]
    differently = CropSampler(grays, size=8, batch=3, seed=2, zoom=(0.8, 1.2))
    assert [numbers(differently, step) for step in range(5)] != [numbers(one, step) for step in range(5)]


@settings(max_examples=15)
@given(step=st.integers(0, 50), world=st.integers(1, 4), batch=st.integers(4, 6))
def test_processes_share_a_batch(grays: list[Sample], step: int, world: int, batch: int) -> None:
    sampler = CropSampler(grays, size=8, batch=batch, seed=1)
    whole = sampler.draw(step).images
    parts = [sampler.draw(step, rank=rank, world=world).images for rank in range(world)]
    for rank, part in enumerate(parts):
        assert torch.equal(part, whole[rank::world])
    assert sum(map(len, parts)) == batch


def test_rejects_more_processes_than_crops(grays: list[Sample]) -> None:
    with pytest.raises(DataError, match="a batch of 2 for 3 processes: enlarge it"):
        CropSampler(grays, size=8, batch=2, seed=0).draw(0, rank=2, world=3)


def test_crops_have_the_pixels_of_the_images(tmp_path: Path) -> None:
    """Without zoom a crop is a window of the image, turned and flipped; the mask is the same window."""
    image = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    mask = (np.arange(144) % 7).astype(np.uint8).reshape(12, 12)
    sampler = CropSampler([write_sample(tmp_path, "a", image, mask=mask)], size=12, batch=8, seed=0)
    images, masks, _ = sampler.draw(0)
    assert masks is not None
    assert (images.dtype, masks.dtype) == (torch.float32, torch.int64)
    seen = Counter()
    for crop, labels in zip(images, masks, strict=True):
        pixels = (crop.permute(1, 2, 0) * 255).round().byte().numpy()
        ways = {
            (turns, flip): (
                np.rot90(image, turns)[:, :: -1 if flip else 1],
                np.rot90(mask, turns)[:, :: -1 if flip else 1],
            )
            for turns in range(4)
            for flip in (False, True)
        }
        (way,) = [way for way, (turned, _) in ways.items() if np.array_equal(turned, pixels)]
        assert np.array_equal(ways[way][1], labels)
        seen[way] += 1
    assert len({turns for turns, _ in seen}) > 1
    assert len({flip for _, flip in seen}) == 2


@settings(max_examples=40)
@given(
    height=st.integers(9, 70),
    width=st.integers(9, 70),
    size=st.integers(8, 40),
    own=st.sampled_from([0.5, 0.8, 1.0, 1.7]),
    seed=st.integers(0, 1000),
)
def test_masks_are_cropped_like_their_images(
    tmp_path_factory: Any, height: int, width: int, size: int, own: float, seed: int
) -> None:
    """An image of a smooth surface, and the mask of where it is above a level."""
    folder = tmp_path_factory.mktemp("surface")
    y, x = np.mgrid[:height, :width]
    surface = 127.5 + 60 * np.sin(x / 9 + 1) + 60 * np.cos(y / 7)
    image = np.repeat(surface.astype(np.uint8)[:, :, None], 3, axis=2)
    sample = write_sample(folder, "a", image, own, mask=(image[:, :, 0] > 127).astype(np.uint8))
    images, masks, _ = CropSampler([sample], size=size, batch=4, seed=seed, zoom=(0.7, 1.4)).draw(0)
    assert images.shape == (4, 3, size, size)
    assert masks is not None
    clear = (images[:, 0] * 255 - 127.5).abs() > 30  # further from the border than rounding and smoothing reach
    assert torch.equal((images[:, 0] > 0.5)[clear].long(), masks[clear])


@pytest.mark.parametrize(("own", "expected"), [(1.0, 8), (2.0, 16), (0.5, 4)])
def test_crops_are_at_the_scale_of_the_model(tmp_path: Path, own: float, expected: int) -> None:
    """Stripes of 4 px an 8 px period: at a zoom of 2 their period is 16."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, np.arange(128) % 8 < 4] = 255
    sampler = CropSampler([write_sample(tmp_path, "a", stripes, own)], size=64, batch=6, seed=0)
    for image in sampler.draw(0).images:
        rows = image[0] if image[0].std(1).mean() > image[0].std(0).mean() else image[0].T
        spectrum = np.abs(np.fft.rfft((rows - rows.mean()).numpy().mean(0)))
        assert 64 / spectrum.argmax() == expected


def test_random_zoom_stays_in_its_range(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, 2)  # 1 level a pixel
    sampler = CropSampler([write_sample(tmp_path, "a", ramp)], size=32, batch=64, seed=0, zoom=(0.5, 2.0))
    spans = (sampler.draw(0).images[:, 0].amax((1, 2)) - sampler.draw(0).images[:, 0].amin((1, 2))) * 255
    zooms = 31 / spans
    assert 0.45 < zooms.min() < 0.6
    assert 1.6 < zooms.max() < 2.3
    assert 0.8 < float(zooms.log().mean().exp()) < 1.25  # even in the logarithm: as often half as double


def test_small_images_are_mirrored_at_the_border(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :3] = 200
    mask = (image[:, :, 0] > 0).astype(np.uint8)
    images, masks, _ = CropSampler([write_sample(tmp_path, "a", image, mask=mask)], size=16, batch=4, seed=0).draw(0)
    assert masks is not None
    assert torch.equal((images[:, 0] > 0.5).long(), masks)
    assert set(np.unique(images.mul(255).round())) == {0, 200}
    assert float(masks.float().mean()) == pytest.approx(0.5, abs=0.13)  # mirrored, not padded with one value


def test_ignored_pixels_stay_ignored(tmp_path: Path) -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[:, 12:] = 255
    sampler = CropSampler([write_sample(tmp_path, "a", gray(9), mask=mask)], size=16, batch=4, seed=0, zoom=(0.6, 1.5))
    masks = sampler.draw(0).masks
    assert masks is not None
    assert set(masks.unique().tolist()) == {0, 255}


def test_no_masks_where_one_image_has_none(grays: list[Sample]) -> None:
    missing = Path("nowhere.png")
    sampler = CropSampler([*grays, Sample(grays[0].image)], size=8, batch=8, seed=0)
    assert not sampler.labelled
    assert sampler.draw(0).masks is None
    wrong = CropSampler([Sample(grays[0].image, missing)], size=8, batch=1, seed=0)
    assert wrong.labelled
    with pytest.raises(ImageReadError, match=r"nowhere\.png"):
        wrong.draw(0)
    assert wrong.unlabelled().draw(0).masks is None


def test_unlabelled_gives_the_same_crops(grays: list[Sample]) -> None:
    sampler = CropSampler(grays, size=8, batch=3, seed=5, zoom=(0.7, 1.4))
    assert torch.equal(sampler.unlabelled().draw(2).images, sampler.draw(2).images)


def test_rejects_mask_of_other_size(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, "a", gray(9), mask=np.zeros((20, 20), np.uint8))
    with pytest.raises(
        DataError, match=r"mask .*a-mask\.png to have the size of its image, \(20, 24\), got \(20, 20\)"
    ):
        CropSampler([sample], size=8, batch=1, seed=0).draw(0)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"batch": 0}, {"zoom": (0.0, 1.0)}, {"zoom": (1.2, 0.8)}])
def test_rejects_invalid_arguments(grays: list[Sample], wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="positive crop size, batch and zoom range"):
        CropSampler(grays, **{"size": 8, "batch": 1, "seed": 0} | wrong)
    with pytest.raises(DataError, match=r"at least one image.*check the dataset"):
        CropSampler([], size=8, batch=1, seed=0)


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each image is decoded from now on."""
    read = Counter[Path]()

    def counting(path: Path, original: Callable[[Path], Any] = image_parts.read_image) -> Any:
        read[path] += 1
        return original(path)

    monkeypatch.setattr(image_parts, "read_image", counting)
    return read


def test_memory_of_decoded_images_is_limited(grays: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch)
    everything = CropSampler(grays, size=8, batch=7, seed=0)
    for step in range(3):
        everything.draw(step)
    assert set(read.values()) == {1}
    read.clear()
    decoded = DecodedFiles(memory=3 * 20 * 24 * 4)  # three images with their masks
    limited = CropSampler(grays, size=8, batch=7, seed=0, decoded=decoded)
    for step in range(3):
        assert torch.equal(limited.draw(step).images, everything.draw(step).images)
        assert sum(array.nbytes for array in decoded._arrays.values()) == decoded._bytes <= decoded.memory
    assert max(read.values()) > 1


def test_decoded_files_are_shared_and_follow_their_images(
    grays: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another sampler, of another process or a resumed training, decodes nothing again; a changed image is."""
    read, folder = counted(monkeypatch), tmp_path / "decoded"
    options: dict[str, Any] = {"size": 8, "batch": 7, "seed": 0}
    expected = CropSampler(grays, **options).draw(0)
    read.clear()
    for _ in range(2):
        got = CropSampler(grays, decoded=DecodedFiles(folder), **options).draw(0)
        assert torch.equal(got.images, expected.images)
        assert got.masks is not None
        assert torch.equal(got.masks, expected.masks)  # type: ignore[arg-type]
    assert sorted(read.values()) == [1] * 7
    write_png(grays[0].image, gray(200, 20, 24))
    again = CropSampler(grays, decoded=DecodedFiles(folder), **options).draw(0)
    assert float(again.images.amax()) == pytest.approx(200 / 255)


def test_decoded_files_stay_in_memory_where_the_disk_is_full(
    grays: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = CropSampler(grays, size=8, batch=7, seed=0).draw(0).images
    monkeypatch.setattr(files, "_free_bytes", lambda _path: 100)
    sampler = CropSampler(grays, size=8, batch=7, seed=0, decoded=DecodedFiles(tmp_path / "decoded"))
    assert torch.equal(sampler.draw(0).images, expected)
    assert "the disk is full" in caplog.text
    assert not list((tmp_path / "decoded").glob("*.npy"))


@settings(max_examples=60)
@given(data=st.data(), height=st.integers(9, 90), width=st.integers(9, 90), size=st.integers(4, 40))
def test_a_part_is_resampled_like_the_whole_image(data: st.DataObject, height: int, width: int, size: int) -> None:
    """Pillow on the whole, padded image; positions at other offsets may round a value the other way, in each of the
    two directions that are resampled one after the other."""
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = data.draw(st.floats(size / 3, 3 * size))
    least = int(np.ceil(side))
    missing = [max(0, least - length) for length in (height, width)]
    padded = np.pad(image, [(m // 2, m - m // 2) for m in missing] + [(0, 0)], mode="symmetric")
    top, left = (data.draw(st.floats(0, length - side)) for length in padded.shape[:2])
    box = (left, top, left + side, top + side)
    for filter_ in (Image.Resampling.BILINEAR, Image.Resampling.NEAREST):
        wanted = np.asarray(Image.fromarray(padded).resize((size, size), filter_, box)).astype(int)
        got = resample(image, box, (size, size), filter_, least).astype(int)
        if filter_ == Image.Resampling.BILINEAR:
            assert np.abs(got - wanted).max() <= 2
        else:  # a position between two pixels is of either
            at = [start + (np.arange(size) + 0.5) * side / size for start in (top, left)]
            rows, columns = (np.abs(it - it.round()) > 1e-6 for it in at)
            assert np.array_equal(got[rows][:, columns], wanted[rows][:, columns])


def test_a_crop_of_a_large_image_reads_only_its_surroundings(tmp_path: Path) -> None:
    image = np.lib.stride_tricks.as_strided(np.zeros(3, np.uint8), (10**6, 10**6, 3), (0, 0, 1))  # 3 TB
    part = resample(image, (5e5, 5e5, 5e5 + 300, 5e5 + 300), (192, 192), Image.Resampling.BILINEAR, 300)
    assert part.shape == (192, 192, 3)


@pytest.mark.parametrize("size", [32, 120])
def test_crops_of_a_region_of_a_slide_are_those_of_the_same_image(size: int, tmp_path: Path) -> None:
    """Parts of it are read; a region smaller than the crop is mirrored at the border."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 256, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(64, 64), photometric="rgb")
    region = SlideRegion(tmp_path / "slide.tif", (20, 10, 120, 100))
    sample = write_sample(tmp_path, "a", pixels[10:100, 20:120], mask=pixels[10:100, 20:120, 0] // 100)
    options: dict[str, Any] = {"size": size, "batch": 4, "seed": 0, "zoom": (1.0, 1.4)}
    expected = CropSampler([sample], **options).draw(0)
    got = CropSampler([replace(sample, image=region)], **options).draw(0)
    assert float((got.images - expected.images).abs().max()) < 1.5 / 255
    assert got.masks is not None
    assert torch.equal(got.masks, expected.masks)  # type: ignore[arg-type]


def test_rejects_indices_that_are_no_class(tmp_path: Path) -> None:
    mask = np.full((20, 24), 255, np.uint8)
    mask[:, 3:] = 2
    sample = write_sample(tmp_path, "a", gray(9), mask=mask)
    assert CropSampler([sample], size=20, batch=1, seed=0, classes=3).draw(0).masks is not None
    with pytest.raises(DataError, match=r"class indices 0\.\.1, or 255 .*a-mask\.png, got 2"):
        CropSampler([sample], size=20, batch=1, seed=0, classes=2).draw(0)


def test_step_generators_are_independent() -> None:
    draws = {
        key: float(torch.rand((), generator=step_generator(*key)))
        for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 5, 2))
    }
    assert len(set(draws.values())) == 5
    assert float(torch.rand((), generator=step_generator(0, 5, 2))) == draws[0, 5, 2]


def test_resampling_equals_that_of_the_engine(tmp_path: Path) -> None:
    """A whole image at another scale: the same pixels that inference computes on."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    crop = CropSampler([write_sample(tmp_path, "a", image, 0.5)], size=32, batch=1, seed=0).draw(0).images[0]
    rescaled = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    pixels = (crop.permute(1, 2, 0) * 255).round().byte().numpy()
    assert any(np.array_equal(np.rot90(rescaled, turns)[:, ::step], pixels) for turns in range(4) for step in (1, -1))


# --- windows


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    rng = np.random.default_rng(0)
    for number in range(6):
        write_png(tmp_path / f"{number}.png", rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
    return [Sample(tmp_path / f"{number}.png", tmp_path / "no-mask.png") for number in range(6)]


def test_small_images_are_whole_windows(samples: list[Sample], tmp_path: Path) -> None:
    files = cut_windows(samples, tmp_path / "w", side=512)
    assert [file.name for file in files] == [f"{number:06d}.png" for number in range(6)]
    for sample, file in zip(samples, files, strict=True):
        assert np.array_equal(read_image(file), read_image(sample.image))


def test_windows_of_large_images_are_parts_of_them(samples: list[Sample], tmp_path: Path) -> None:
    (file,) = cut_windows(samples[:1], tmp_path / "w", side=32)
    window, image = read_image(file), read_image(samples[0].image)
    assert window.shape == (32, 32, 3)
    assert any(
        np.array_equal(image[top : top + 32, left : left + 32], window)
        for top in range(image.shape[0] - 31)
        for left in range(image.shape[1] - 31)
    )


def test_windows_are_at_the_models_scale(samples: list[Sample], tmp_path: Path) -> None:
    halved = [Sample(samples[0].image, zoom=0.5)]
    assert read_image(cut_windows(halved, tmp_path / "w", side=512)[0]).shape == (40, 50, 3)
    assert read_image(cut_windows(halved, tmp_path / "v", side=16)[0]).shape == (16, 16, 3)


def test_total_pixels_are_limited_and_one_window_is_cut(samples: list[Sample], tmp_path: Path) -> None:
    assert len(cut_windows(samples, tmp_path / "w", megapixels=0.025)) == 3  # of 0.008 each
    assert len(cut_windows(samples, tmp_path / "v", megapixels=0.001)) == 1


def test_windows_depend_on_the_seed(samples: list[Sample], tmp_path: Path) -> None:
    one, same, other = (
        [file.name for file in cut_windows(samples, tmp_path / name, megapixels=0.025, seed=seed)]
        for name, seed in (("a", 1), ("b", 1), ("c", 4))
    )
    assert one == same != other


def test_rejects_cutting_windows_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one image to cut windows from"):
        cut_windows([], tmp_path / "w")


@pytest.mark.parametrize("size", [8, 40])
def test_crops_overlap_the_region_in_focus(size: int, tmp_path: Path) -> None:
    mask = np.full((30, 50), 255, np.uint8)
    mask[4:9, 33:39] = 1
    sample = write_sample(tmp_path, "a", gray(9, 30, 50), mask=mask)
    (region,) = labelled_parts(mask)
    assert region == (33, 4, 39, 9)
    focused = Sample(sample.image, sample.mask, focus=region)
    masks = CropSampler([focused], size=size, batch=4, seed=0, zoom=(0.8, 1.25)).draw(0).masks
    assert masks is not None
    assert all((each == 1).any() for each in masks)
    others = CropSampler([sample], size=8, batch=8, seed=0).draw(0).masks
    assert others is not None
    assert not all((each == 1).any() for each in others)


def test_labelled_parts_are_boxes_of_what_is_not_ignored() -> None:
    mask = np.full((30, 30), 255, np.uint8)
    mask[1:13, 1:14], mask[15:29, 16:29], mask[29, 0] = 0, 1, 1  # the last one is tiny
    assert labelled_parts(mask) == [(1, 1, 14, 13), (16, 15, 29, 29)]
    assert labelled_parts(np.zeros((4, 6), np.uint8)) == []
    assert labelled_parts(np.full((4, 6), 255, np.uint8)) == []


@pytest.mark.parametrize(
    ("count", "limit", "chosen"),
    [(10, 4, [0, 3, 6, 9]), (10, 1, [0]), (10, 0, []), (3, 5, [0, 1, 2]), (0, 5, []), (4, 3, [0, 2, 3])],
)
def test_evenly_spaced_items_are_different_ones_from_the_first_to_the_last(
    count: int, limit: int, chosen: list[int]
) -> None:
    assert evenly_spaced(range(count), limit) == chosen
