"""Inference on a CUDA device, compared with the same network in 32 bits on the CPU."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch

from microseg.inference.batch import segment_batch
from microseg.inference.engine import Engine
from microseg.inference.image_pipeline import BatchOptions
from microseg.inference.slide import slide_strips
from microseg.models.config import NetworkConfig
from microseg.models.network import PyramidSegmenter
from microseg.outputs.record import Provenance, read_record
from microseg.slides.images import write_png
from microseg.slides.slide import ArraySlide

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

Picture = npt.NDArray[np.uint8]

_PROBABILITY = 0.02  # largest change by 16 bits


def picture(height: int, width: int, seed: int = 0) -> Picture:
    """Soft blobs on a light ground."""
    rng = np.random.default_rng(seed)
    small = torch.from_numpy(rng.random((1, 3, -(-height // 16) + 1, -(-width // 16) + 1), np.float32))
    smooth = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)
    return np.ascontiguousarray((smooth[0].permute(1, 2, 0) * 255).byte().numpy())


@pytest.fixture(scope="module")
def network() -> PyramidSegmenter:
    torch.manual_seed(0)
    network = PyramidSegmenter(NetworkConfig(classes=("background", "gland", "stroma"), encoder="resnet18")).train()
    with torch.no_grad():  # statistics of real activations
        for seed in range(4):
            network(torch.from_numpy(picture(128, 128, seed)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1) / 255)
    return network.eval()


@pytest.fixture(scope="module")
def on_cpu(network: PyramidSegmenter) -> Engine:
    return Engine(network, tile=256, halo=32)


@pytest.fixture(scope="module")
def on_cuda(network: PyramidSegmenter) -> Engine:
    return Engine(network, device="cuda", tile=256, halo=32)


@pytest.mark.parametrize("size", [(50, 70), (256, 256), (300, 420), (1, 1), (1300, 1000)])
@pytest.mark.parametrize("half", [False, True])
def test_probabilities_are_those_of_the_cpu(network: PyramidSegmenter, size: tuple[int, int], half: bool) -> None:
    image = picture(*size)
    expected = Engine(network, tile=256, halo=32).probabilities(image)
    given = Engine(network, device="cuda", tile=256, halo=32, block=256, half=half).probabilities(image)
    np.testing.assert_allclose(given, expected, atol=_PROBABILITY if half else 2e-3)
    assert (given.argmax(0) != expected.argmax(0)).mean() < (0.01 if half else 2e-3)


def test_larger_tiles_and_16_bits_change_few_pixels(on_cpu: Engine, on_cuda: Engine) -> None:
    assert on_cuda.block > 256
    image = picture(1300, 1000)
    given, expected = on_cuda.probabilities(image), on_cpu.probabilities(image)
    assert np.abs(given - expected).mean() < 0.005
    assert (given.argmax(0) != expected.argmax(0)).mean() < 0.01


def test_many_images_in_flight_get_their_own_results(on_cpu: Engine, on_cuda: Engine) -> None:
    """Pinned memory is used again while others are copied."""
    images = [picture(200 + 8 * (seed % 3), 180, seed) for seed in range(90)]
    futures = [on_cuda.submit(image, probabilities=True) for image in images]
    for image, future in zip(images, futures, strict=True):
        prediction = future.result()
        assert prediction.probabilities is not None
        np.testing.assert_array_equal(prediction.mask, prediction.probabilities.argmax(0))
        np.testing.assert_allclose(prediction.confidence / 255, prediction.probabilities.max(0), atol=0.5 / 255 + 1e-6)
        np.testing.assert_allclose(prediction.probabilities, on_cpu.probabilities(image), atol=_PROBABILITY)


def test_slide_equals_the_image(on_cuda: Engine) -> None:
    image = picture(2300, 700)
    _, _, strips = slide_strips(on_cuda, ArraySlide(image, Path("slide.tif"), None), None, skip_glass=False)
    mask = np.concatenate([strip.mask for strip in strips])
    assert (mask != on_cuda.probabilities(image).argmax(0)).mean() < 1e-3


def test_batch_that_does_not_fit_the_memory_is_halved(
    network: PyramidSegmenter, on_cpu: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(network, device="cuda", tile=256, halo=32, block=256, batch=400)
    images = [picture(256, 256, seed) for seed in range(60)]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / total)
    try:
        futures = [engine.submit(image) for image in images]
        masks = [future.result(120).mask for future in futures]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "has not enough memory for a batch" in caplog.text
    for image, mask in zip(images, masks, strict=True):
        assert (mask != on_cpu.submit(image).result().mask).mean() < 0.01


@pytest.mark.parametrize("processes", [0, 2])
def test_files_are_those_of_the_cpu(on_cpu: Engine, on_cuda: Engine, tmp_path: Path, processes: int) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{seed}.png" for seed in range(12)]
    for seed, path in enumerate(paths):
        write_png(path, picture(200, 300, seed))
    masks: list[list[Picture]] = []
    for engine, count in ((on_cpu, 0), (on_cuda, processes)):
        out = tmp_path / engine.device.type
        options = BatchOptions(processes=count)
        summary = segment_batch(engine, paths, out, provenance=Provenance(model="m"), options=options)
        assert (summary.done, summary.failed) == (12, 0)
        masks.append([tifffile.imread(out / f"{path.stem}.labels.tif") for path in paths])
    assert np.mean(np.array(masks[0]) != np.array(masks[1])) < 0.01
    for path in paths:
        records = [read_record(tmp_path / device / f"{path.stem}.json") for device in ("cpu", "cuda")]
        confidences = [record.summary["mean_confidence"] for record in records]
        assert confidences[1] == pytest.approx(confidences[0], abs=0.005)
