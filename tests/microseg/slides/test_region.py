import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.errors import DataError, ImageReadError
from microseg.slides.identity import source_sha256, source_state
from microseg.slides.region import RecordedSlide, SlideRegion, read_source


@pytest.fixture
def slide(tmp_path):
    """A pyramid of two levels, of which the coarser one is recognizable by its red channel."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 640, 3), np.uint8)
    coarse = np.full((256, 320, 3), (200, 30, 40), np.uint8)
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(64, 64), subifds=1, photometric="rgb")
        tiff.write(coarse, tile=(64, 64), subfiletype=1, photometric="rgb")
    return path, pixels


def test_reads_a_region_at_full_resolution(slide):
    path, pixels = slide
    region = SlideRegion(path, (100, 50, 300, 170))
    np.testing.assert_array_equal(read_source(region), pixels[50:170, 100:300])
    assert (region.width, region.height) == (200, 120)


def test_crops_at_the_same_scale_are_the_pixels(slide):
    path, pixels = slide
    region = SlideRegion(path, (100, 50, 300, 170))
    np.testing.assert_array_equal(region.crop((10, 20, 74, 84), (64, 64)), pixels[70:134, 110:174])


def test_enlarged_crops_equal_those_of_the_whole_image(slide):
    path, pixels = slide
    crop = SlideRegion(path, (100, 50, 300, 170)).crop((10.5, 20.25, 40.5, 50.25), (90, 90))
    expected = Image.fromarray(pixels).resize((90, 90), Image.Resampling.BILINEAR, (110.5, 70.25, 140.5, 100.25))
    np.testing.assert_array_equal(crop, np.asarray(expected))


def test_reduced_crops_are_read_from_the_coarser_level(slide):
    crop = SlideRegion(slide[0], (100, 50, 300, 170)).crop((0, 0, 200, 120), (100, 60))
    np.testing.assert_array_equal(crop, np.broadcast_to((200, 30, 40), (60, 100, 3)))


def test_refuses_crops_beyond_the_region(slide):
    with pytest.raises(DataError, match="inside of 200 x 120"):
        SlideRegion(slide[0], (100, 50, 300, 170)).crop((0, 0, 201, 100), (10, 10))


def test_opens_a_replaced_slide_again(slide):
    path, pixels = slide
    region = SlideRegion(path, (0, 0, 64, 64))
    region.read()
    tifffile.imwrite(path, 255 - pixels, tile=(64, 64), photometric="rgb")
    np.testing.assert_array_equal(region.read(), 255 - pixels[:64, :64])


def test_refuses_another_slide_than_was_recorded(slide):
    path, pixels = slide
    recorded = RecordedSlide(source_sha256(path), source_state(path))
    content = path.read_bytes()
    SlideRegion(path, (0, 0, 64, 64), recorded).read()
    path.write_bytes(content)  # another time, the same content
    SlideRegion(path, (0, 0, 64, 64), recorded).read()
    tifffile.imwrite(path, 255 - pixels, tile=(64, 64), photometric="rgb")
    with pytest.raises(ImageReadError, match="expected the slide that was ingested"):
        SlideRegion(path, (0, 0, 64, 64), recorded).read()
    path.unlink()
    with pytest.raises(ImageReadError, match="mount that folder"):
        SlideRegion(path, (0, 0, 64, 64), recorded).read()
