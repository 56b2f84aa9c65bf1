import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from microseg.datasets.stain import transmitted_light
from microseg.slides.images import read_image
from microseg.slides.modality import Modality, image_modality, lab_modality
from microseg.synthetic.labs import LAB_A, LAB_B, generate_image

Pixels = npt.NDArray[np.uint8]


@pytest.fixture
def cells() -> npt.NDArray[np.float32]:
    """Amount of something in each pixel, 0..1: smooth blobs on nothing, (H, W)."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(160, 200)), 6)
    return np.clip(noise / noise.max(), 0, 1).astype(np.float32)


def gray(intensity: npt.NDArray[np.float32]) -> Pixels:
    return np.repeat(np.clip(intensity, 0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def jpeg(image: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("profile", [LAB_A, LAB_B])
def test_sections_are_stained(profile):
    assert image_modality(generate_image(profile, 256, 1.0, seed=0)[0]) == Modality.STAINED


@pytest.mark.parametrize("amount", [0.12, 0.3, 1.0])
def test_pale_hematoxylin_and_eosin_is_stained(cells, amount):
    nuclei = ndimage.zoom(cells[:40, :50], 4, order=1)
    light = transmitted_light(amount * np.stack([nuclei, 0.5 * cells, 0 * cells], axis=2))
    image = (240 * light).round().astype(np.uint8)
    assert image_modality(image) == Modality.STAINED
    assert image_modality(jpeg(image, 80)) == Modality.STAINED


def test_gray_brightfield_is_gray(cells):
    assert image_modality(gray(230 - 150 * cells)) == Modality.GRAY


def test_a_tint_of_the_light_is_no_color(cells):
    tinted = (gray(230 - 150 * cells) * np.array([1.0, 0.97, 0.88])).astype(np.uint8)
    assert image_modality(tinted) == Modality.GRAY


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_noise_of_the_camera_and_compression_have_no_color(cells, quality):
    noise = np.random.default_rng(1).normal(0, 6, (160, 200, 3))
    noisy = np.clip(gray(230 - 150 * cells) + noise, 0, 255).astype(np.uint8)
    assert image_modality(jpeg(noisy, quality)) == Modality.GRAY


def test_a_gray_16_bit_file_is_gray(cells, tmp_path):
    file = tmp_path / "em.png"
    Image.fromarray((20_000 + 30_000 * (1 - cells)).astype(np.uint16)).save(file)
    assert image_modality(read_image(file)) == Modality.GRAY


@pytest.mark.parametrize("color", [(1, 1, 1), (0, 1, 0), (0.2, 0.3, 1)])
@pytest.mark.parametrize("brightness", [30, 220])
def test_signals_on_a_dark_background_are_fluorescence(cells, color, brightness):
    image = (6 + brightness * np.where(cells > 0.3, cells, 0)[:, :, None] * np.array(color)).astype(np.uint8)
    assert image_modality(image) == Modality.FLUORESCENCE


def test_a_dark_section_is_no_fluorescence(cells):
    dark = transmitted_light(1.5 * np.stack([0.4 + cells, 0.5 - 0.4 * cells, 0 * cells], axis=2))
    assert image_modality((240 * dark).astype(np.uint8)) == Modality.STAINED


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_image_shows_nothing(level):
    assert image_modality(np.full((40, 40, 3), level, np.uint8)) is None
    assert image_modality(np.full((3, 5, 3), level, np.uint8)) is None


def test_a_lab_is_what_most_of_its_images_are(cells):
    section, bright = generate_image(LAB_A, 128, 1.0, seed=0)[0], gray(230 - 150 * cells)
    empty = np.full((40, 40, 3), 240, np.uint8)
    assert lab_modality([section, section, bright, empty, empty, empty]) == Modality.STAINED
    assert lab_modality([section, bright]) == Modality.GRAY
    assert lab_modality([empty]) == lab_modality([]) == Modality.GRAY


def test_only_stains_have_stain_colors():
    assert [it for it in Modality if it.has_stain_colors] == [Modality.STAINED]
