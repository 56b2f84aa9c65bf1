"""DICOM whole slides and OME-Zarr, compared with the pixels that they were written from."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import zarr
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

from microseg.errors import ImageReadError
from microseg.slides import limited
from microseg.slides.folder import list_images
from microseg.slides.identity import source_sha256
from microseg.slides.readers import is_slide, open_slide
from microseg.slides.slide import Slide

TILE = 64
MPP = 0.5


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8)


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    series: str,
    *,
    level: int = 0,
    encode: Callable[[np.ndarray], bytes] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    photometric: str = "RGB",
) -> Path:
    """Write one level as tiles in full order; without compression, or each encoded."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % TILE), (0, -width % TILE), (0, 0)))
    frames = [
        np.ascontiguousarray(padded[y : y + TILE, x : x + TILE])
        for y in range(0, height, TILE)
        for x in range(0, width, TILE)
    ]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = VLWholeSlideMicroscopyImageStorage, syntax
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = generate_uid(), series, "SM"
    data.FrameOfReferenceUID = generate_uid()
    data.ImageType = (
        ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if not level else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    )
    data.DimensionOrganizationType = "TILED_FULL"
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.Columns = data.Rows = TILE
    data.NumberOfFrames, data.NumberOfOpticalPaths, data.TotalPixelMatrixFocalPlanes = len(frames), 1, 1
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, photometric, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    spacing, measures, groups = MPP / 1000 * 2**level, Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 0.001
    groups.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([groups])
    optical = Dataset()
    optical.OpticalPathIdentifier = "0"
    data.OpticalPathSequence = Sequence([optical])
    if encode is None:
        data.PixelData = b"".join(frame.tobytes() for frame in frames)
    else:
        data.PixelData = encapsulate([encode(frame) for frame in frames])
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def dicom(tmp_path, pixels):
    """A folder with a slide of two levels."""
    folder, series = tmp_path / "case", generate_uid()
    folder.mkdir()
    write_dicom(folder / "a.dcm", pixels, series)
    write_dicom(folder / "b.dcm", pixels[::2, ::2], series, level=1)
    return folder


def write_zarr(path: Path, pixels: np.ndarray, *, version: int = 2, axes: str = "cyx", omero: object = None) -> Path:
    """Write two levels as NGFF 0.4 (Zarr 2) or 0.5 (Zarr 3)."""
    root = zarr.open_group(path, mode="w", zarr_format=version)
    names = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    described = [{"name": it, "type": names[it]} | ({"unit": "micrometer"} if it in "zyx" else {}) for it in axes]
    datasets = []
    for level in range(2):
        array = np.moveaxis(pixels[:: 2**level, :: 2**level], 2, 0)
        for _ in range(len(axes) - 3):
            array = array[None] if axes[0] == "t" and array.ndim == len(axes) - 1 else array[:, None]
        root.create_array(str(level), data=array, chunks=(*array.shape[:-2], 64, 64))
        scale = [1.0] * (len(axes) - 2) + [MPP * 2**level] * 2
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    image = {"multiscales": [{"version": "0.4", "axes": described, "datasets": datasets}]}
    if omero is not None:
        image["omero"] = omero
    root.attrs.update({"ome": image} if version == 3 else image)
    return path


def check(slide: Slide, pixels: np.ndarray) -> None:
    assert (slide.width, slide.height, slide.mpp) == (pixels.shape[1], pixels.shape[0], MPP)
    np.testing.assert_array_equal(slide.read_region(0, 0, 0, slide.width, slide.height), pixels)
    np.testing.assert_array_equal(slide.read_region(0, 50, 30, 100, 70), pixels[30:100, 50:150])
    np.testing.assert_array_equal(slide.read_region(1, 10, 20, 64, 40), pixels[::2, ::2][20:60, 10:74])


@pytest.mark.parametrize("single", [False, True])
def test_dicom_has_the_pixels_it_was_written_from(dicom, pixels, single):
    path = dicom / "a.dcm" if single else dicom
    with open_slide(path) as slide:
        assert slide.path == path
        check(slide, pixels)
    assert is_slide(path, megapixels=1000)


def encode_jpeg(tile):
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def smooth(pixels):
    """Pixels that lossy compression keeps nearly."""
    return np.asarray(Image.fromarray(pixels[::16, ::16]).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))


def test_dicom_compressed_as_jpeg(tmp_path, pixels):
    written = smooth(pixels)
    options = {"encode": encode_jpeg, "syntax": JPEGBaseline8Bit, "photometric": "YBR_FULL_422"}
    path = write_dicom(tmp_path / "a.dcm", written, generate_uid(), **options)
    expected = np.zeros_like(written)
    for y in range(0, len(written), TILE):
        for x in range(0, written.shape[1], TILE):
            tile = Image.open(io.BytesIO(encode_jpeg(np.ascontiguousarray(written[y : y + TILE, x : x + TILE]))))
            expected[y : y + TILE, x : x + TILE] = tile
    with open_slide(path) as slide:
        found = slide.read_region(0, 0, 0, slide.width, slide.height)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.abs(found.astype(int) - written).mean() < 3  # colors are not swapped


def test_dicom_compressed_as_lossless_jpeg_2000(tmp_path, pixels):
    options = {"syntax": JPEG2000Lossless, "photometric": "YBR_RCT"}

    def encode(tile):
        return imagecodecs.jpeg2k_encode(tile, codecformat="j2k", level=0, mct=True, reversible=True)

    path = write_dicom(tmp_path / "a.dcm", pixels, generate_uid(), encode=encode, **options)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, slide.width, slide.height), pixels)


def test_dicom_in_a_compression_that_openslide_does_not_read_is_refused(tmp_path, pixels):
    path = write_dicom(tmp_path / "a.dcm", pixels, generate_uid(), encode=bytes, syntax=RLELossless)
    with pytest.raises(ImageReadError):
        open_slide(path)


def test_dicom_of_two_slides_with_one_series_is_refused(tmp_path, pixels):
    series = generate_uid()
    write_dicom(tmp_path / "a.dcm", pixels, series)
    write_dicom(tmp_path / "b.dcm", pixels[:, ::-1], series)
    with pytest.raises(ImageReadError), open_slide(tmp_path / "a.dcm") as slide:
        slide.read_region(0, 0, 0, slide.width, slide.height)


def test_dicom_is_found_in_folders(dicom, tmp_path):
    assert list_images(tmp_path).images == (dicom,)
    assert list_images(dicom).images == (dicom / "a.dcm",)
    assert list_images(dicom).left_out == {"b.dcm": "a part of a.dcm"}


def test_refuses_dicom_without_its_finest_level(dicom):
    (dicom / "a.dcm").unlink()
    with pytest.raises(ImageReadError, match="finest level is missing"):
        open_slide(dicom)


def test_refuses_several_slides_in_a_folder(dicom, pixels):
    write_dicom(dicom / "c.dcm", pixels, generate_uid())
    with pytest.raises(ImageReadError, match="got those of 2"):
        open_slide(dicom)


def test_truncated_dicom_is_an_error(dicom):
    content = (dicom / "a.dcm").read_bytes()
    (dicom / "a.dcm").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageReadError), limited.open_slide(dicom) as slide:
        slide.read_region(0, 256, 192, 64, 64)


def test_identity_of_dicom_has_all_files(dicom):
    before = source_sha256(dicom)
    assert before == source_sha256(dicom)
    (dicom / "b.dcm").unlink()
    assert source_sha256(dicom) != before


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["cyx", "tczyx"])
def test_ome_zarr_has_the_pixels_it_was_written_from(tmp_path, pixels, version, axes):
    path = write_zarr(tmp_path / "image.zarr", pixels, version=version, axes=axes)
    with open_slide(path) as slide:
        check(slide, pixels)
    with limited.open_slide(path) as slide:  # in another process
        check(slide, pixels)
    assert list_images(tmp_path).images == (path,)


def test_zipped_ome_zarr_is_the_same(tmp_path, pixels):
    folder = write_zarr(tmp_path / "image.zarr", pixels)
    archive = Path(shutil.make_archive(str(tmp_path / "image.zarr"), "zip", folder))
    with open_slide(archive) as slide:
        check(slide, pixels)


def test_gray_ome_zarr(tmp_path, pixels):
    path = write_zarr(tmp_path / "gray.zarr", pixels[:, :, :1])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(
            slide.read_region(0, 0, 0, 320, 256), np.broadcast_to(pixels[:, :, :1], pixels.shape)
        )


def test_16_bits_need_their_range(tmp_path, pixels):
    deep = pixels[:, :, :1].astype(np.uint16) * 4
    with pytest.raises(ImageReadError, match="range of each channel"):
        open_slide(write_zarr(tmp_path / "a.zarr", deep))
    stated = {"channels": [{"color": "FFFFFF", "window": {"start": 0, "end": 1020}}]}
    with open_slide(write_zarr(tmp_path / "b.zarr", deep, omero=stated)) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 320, 256)[:, :, 0], pixels[:, :, 0])


def test_refuses_what_is_no_single_rgb_plane(tmp_path, pixels):
    colors = {"channels": [{"color": color} for color in ("0000FF", "00FF00", "FF0000")]}
    with pytest.raises(ImageReadError, match="expected red, green and blue"):
        open_slide(write_zarr(tmp_path / "blue.zarr", pixels, omero=colors))
    with pytest.raises(ImageReadError, match="got 2"):
        open_slide(write_zarr(tmp_path / "two.zarr", pixels[:, :, :2]))
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(ImageReadError):
        open_slide(tmp_path / "empty.zarr")


def test_refuses_ome_zarr_that_was_copied_in_part(tmp_path, pixels):
    """A half-copied image: chunks that are not there would be read as black."""
    path = write_zarr(tmp_path / "image.zarr", pixels)
    next(file for file in (path / "1").rglob("*") if file.is_file() and not file.name.startswith(".")).unlink()
    with pytest.raises(ImageReadError, match="missing 1 of"):
        open_slide(path)


@pytest.mark.parametrize("version", [2, 3])
def test_refuses_at_once_what_states_more_chunks_than_there_are_files(tmp_path, version):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    group.create_array("0", shape=(3, 2**40, 2**40), chunks=(3, 4, 4), dtype="u1")
    scales = [{"axes": ["c", "y", "x"], "version": "0.4", "datasets": [{"path": "0"}]}]
    group.attrs.update({"multiscales": scales} if version == 2 else {"ome": {"multiscales": scales}})
    with pytest.raises(ImageReadError, match="expected all chunks of level 0, missing"):
        open_slide(tmp_path / "a.zarr")


def test_shards_of_ome_zarr_are_counted_as_files(tmp_path, pixels):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    array = group.create_array("0", shape=(3, 256, 320), chunks=(1, 16, 16), shards=(3, 128, 160), dtype="u1")
    array[:] = pixels.transpose(2, 0, 1)
    scales = [{"axes": ["c", "y", "x"], "version": "0.5", "datasets": [{"path": "0"}]}]
    group.attrs.update({"ome": {"multiscales": scales}})
    with open_slide(tmp_path / "a.zarr") as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 320, 256), pixels)
