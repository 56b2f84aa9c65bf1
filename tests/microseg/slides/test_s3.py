"""OME-Zarr in an object store, which a server on this machine stands for: `pip install s3fs "moto[server]"`."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import zarr

from microseg.errors import ImageReadError, SlideUnavailableError, is_transient
from microseg.slides import limited, remote_zarr
from microseg.slides.identity import source_sha256
from microseg.slides.readers import open_slide
from tests.microseg.slides.test_dicom_and_zarr import check, write_zarr

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

pytestmark = pytest.mark.long
BUCKET, SECRET = "slides", "correct-horse"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with an empty bucket."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    requests.post(f"{url}/moto-api/reset", timeout=10)
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "MICROSEG_ALLOWED_URLS": f"s3://{BUCKET} s3://other",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_zarr, "_PAUSES", (0.01, 0.02))
    monkeypatch.setattr("microseg.limits._idle._idle", [])  # child processes that do not have the variables
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
    yield server
    server.stop()


def upload(image: Path) -> None:
    s3fs.S3FileSystem(skip_instance_cache=True).put(str(image), f"{BUCKET}/lab/{image.name}", recursive=True)


def address_file(folder: Path, name: str = "a.zarr", bucket: str = BUCKET) -> Path:
    path = folder / "a.zarr.url"
    path.write_text(f"s3://{bucket}/lab/{name}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_a_slide_in_a_bucket_has_the_pixels_of_the_local_one(server, tmp_path, pixels, caplog, version):
    local = write_zarr(tmp_path / "a.zarr", pixels, version=version)
    upload(local)
    path = address_file(tmp_path)
    with open_slide(path) as slide:
        check(slide, pixels)
    slide = None
    gc.collect()
    assert "Unclosed client session" not in caplog.text
    with limited.open_slide(path) as slide:
        check(slide, pixels)
    assert len(source_sha256(path)) == 64


def test_a_shard_is_read_in_parts(server, tmp_path, pixels):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    array = group.create_array("0", shape=(3, 256, 320), chunks=(1, 16, 16), shards=(3, 128, 160), dtype="u1")
    array[:] = pixels.transpose(2, 0, 1)
    scales = [{"axes": ["c", "y", "x"], "version": "0.5", "datasets": [{"path": "0"}]}]
    group.attrs.update({"ome": {"multiscales": scales}})
    upload(tmp_path / "a.zarr")
    with open_slide(address_file(tmp_path)) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 16, 32, 16, 16), pixels[32:48, 16:32])


@pytest.mark.parametrize(("name", "bucket"), [("b.zarr", BUCKET), ("a.zarr", "other")])
def test_an_address_with_nothing_is_an_error_that_stays(server, tmp_path, pixels, name, bucket):
    upload(write_zarr(tmp_path / "a.zarr", pixels))
    with pytest.raises(
        ImageReadError, match=rf"s3://{bucket}/lab/{name}.*found none\. Check that the address"
    ) as caught:
        open_slide(address_file(tmp_path, name, bucket))
    assert not is_transient(caught.value)


def test_a_missing_chunk_is_an_error_and_not_black(server, tmp_path, pixels):
    local = write_zarr(tmp_path / "a.zarr", pixels)
    next(it for it in (local / "0").rglob("*") if it.is_file() and it.name[0] != ".").unlink()
    upload(local)
    with open_slide(address_file(tmp_path)) as slide, pytest.raises(ImageReadError, match="would be read as black"):
        slide.read_region(0, 0, 0, slide.width, slide.height)


def test_a_server_that_ends_in_the_middle_is_an_error_that_passes(server, tmp_path, pixels):
    upload(write_zarr(tmp_path / "a.zarr", pixels))
    with open_slide(address_file(tmp_path)) as slide:
        slide.read_region(0, 0, 0, 64, 64)
        server.stop()
        with pytest.raises(SlideUnavailableError, match="Could not connect") as caught:
            slide.read_region(0, 64, 64, 64, 64)
    assert is_transient(caught.value)
    assert SECRET not in str(caught.value)


def test_credentials_that_may_not_read_are_named_as_the_reason(server, tmp_path, pixels):
    upload(write_zarr(tmp_path / "a.zarr", pixels))
    reset = "http://{}:{}/moto-api/reset-auth".format(*server.get_host_and_port())
    requests.post(reset, data=b"0", timeout=10)
    try:
        with pytest.raises(
            ImageReadError, match=r"got Forbidden\. Check that it is there, and that the cred"
        ) as caught:
            open_slide(address_file(tmp_path))
    finally:
        requests.post(reset, data=b"inf", timeout=10)
    assert not is_transient(caught.value)
    assert SECRET not in str(caught.value)


def test_without_credentials_the_error_says_so(server, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ImageReadError, match="Unable to locate credentials"):
        open_slide(address_file(tmp_path))
