"""OME-Zarr at an address, served by a real HTTP server that can fail in every way."""

import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import zarr

from microseg.errors import ImageReadError, SlideUnavailableError, is_transient
from microseg.slides import limited, remote_zarr
from microseg.slides.folder import list_images
from microseg.slides.identity import KnownHashes, source_sha256, source_state
from microseg.slides.readers import is_slide, open_slide
from tests.http_server import Server
from tests.microseg.slides.test_dicom_and_zarr import check, write_zarr

SECRET = "correct-horse"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8)


@pytest.fixture
def server(tmp_path: Path, same_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    monkeypatch.setenv("MICROSEG_ALLOWED_URLS", f"s3://bucket/ {server.url}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote_zarr, "_PAUSES", (0.01, 0.02))
    yield server
    server.close()


@pytest.fixture
def served(server: Server, pixels: np.ndarray) -> Server:
    write_zarr(server.folder / "a.zarr", pixels)
    return server


def address_file(folder: Path, text: str) -> Path:
    path = folder / "a.zarr.url"
    path.write_text(text, encoding="utf-8")
    return path


def is_chunk(request: SimpleHTTPRequestHandler) -> bool:
    return not request.path.rpartition("/")[2].startswith((".", "zarr.json"))


@pytest.mark.parametrize("version", [2, 3])
def test_a_slide_at_an_address_has_the_pixels_of_the_local_one(server, tmp_path, pixels, version):
    write_zarr(tmp_path / "served" / "case 1" / "a.zarr", pixels, version=version)
    path = address_file(tmp_path, f"{server.url}/case%201/a.zarr\n")
    with open_slide(path) as slide:
        check(slide, pixels)
    assert is_slide(path, megapixels=1000)
    assert list_images(tmp_path).images == (path,)


def test_only_the_chunks_of_a_region_are_read(served, tmp_path):
    with open_slide(address_file(tmp_path, f"{served.url}/a.zarr")) as slide:
        served.requests.clear()
        slide.read_region(0, 64, 64, 64, 64)
    assert served.requests == ["/a.zarr/0/0/1/1"] or served.requests == ["/a.zarr/0/0.1.1"]


def test_it_is_read_in_a_child_process(served, tmp_path, pixels, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("MICROSEG_ALLOWED_URLS", served.url)
    monkeypatch.setattr("microseg.limits._idle._idle", [])  # child processes that do not have the variable
    with limited.open_slide(address_file(tmp_path, f"{served.url}/a.zarr")) as slide:
        check(slide, pixels)


@pytest.mark.parametrize(
    "allowed", ["", "https://127.0.0.1", "s3://bucket", "{url}/b", "{url}/a.zar", "{url}:x", "{url}9/"]
)
def test_nothing_is_read_where_it_is_not_allowed(served, tmp_path, monkeypatch, allowed):
    monkeypatch.setenv("MICROSEG_ALLOWED_URLS", allowed.format(url=served.url))
    with pytest.raises(ImageReadError, match=r"expected an address that may be read, .*MICROSEG_ALLOWED_URLS"):
        open_slide(address_file(tmp_path, f"{served.url}/a.zarr"))
    assert not served.requests


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.zarr",
        "{url}/a.zarr\n{url}/b.zarr",
        "{url}/x/../../a.zarr",
        "{url}/x/%2e%2e/a.zarr",
        "{url}/x/..%2fa.zarr",
        "{url}/a.zarr::file:///etc",
        "{url}/a.zarr?X-Token=1",
        "{url}\\@elsewhere/a.zarr",
        "http://[::1/a.zarr",
        "\x00",
        "x" * 5000,
    ],
)
def test_refuses_what_is_no_plain_address(served, tmp_path, text):
    with pytest.raises(ImageReadError):
        open_slide(address_file(tmp_path, text.format(url=served.url)))
    assert not served.requests


def test_a_password_in_an_address_is_refused_and_shown_nowhere(served, tmp_path):
    path = address_file(tmp_path, f"{served.url}/a.zarr".replace("://", f"://reader:{SECRET}@"))
    for read in (open_slide, source_sha256):
        with pytest.raises(ImageReadError, match="without user, password") as caught:
            read(path)
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value)
    assert not served.requests


def test_a_password_of_the_environment_is_used_and_shown_nowhere(served, tmp_path, pixels, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login reader password {SECRET}\n")
    asked = []

    def answer(request):
        asked.append(request.headers.get("Authorization"))
        if asked[-1] is None or is_chunk(request):
            request.send_error(401)
            return True
        return False

    served.answer = answer
    path = address_file(tmp_path, f"{served.url}/a.zarr")
    with pytest.raises(ImageReadError, match="status 401"):
        open_slide(path)
    monkeypatch.setenv("NETRC", str(netrc))
    with open_slide(path) as slide, pytest.raises(ImageReadError, match="status 401") as caught:
        slide.read_region(0, 0, 0, 64, 64)
    assert asked[-1] is not None
    assert SECRET not in repr(caught.value)


def test_refuses_a_redirection(served, tmp_path):
    """It could lead to an address that is not allowed."""

    def answer(request):
        request.send_response(302)
        request.send_header("Location", "http://169.254.169.254/secret")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    served.answer = answer
    with pytest.raises(ImageReadError, match=r"a redirection to http://169\.254\.169\.254/secret"):
        open_slide(address_file(tmp_path, f"{served.url}/a.zarr"))


def test_refuses_an_address_with_nothing(served, tmp_path):
    with pytest.raises(ImageReadError, match=r"/b\.zarr: .*found none\. Check that the address is right") as caught:
        open_slide(address_file(tmp_path, f"{served.url}/b.zarr"))
    assert not is_transient(caught.value)


def test_a_server_that_refuses_everything_is_named_as_the_reason(served, tmp_path):
    """Not that there is no image."""

    def answer(request):
        request.send_error(403)
        return True

    served.answer = answer
    with pytest.raises(ImageReadError, match=r"got status 403 Forbidden\. Check that it is there, and that the cred"):
        open_slide(address_file(tmp_path, f"{served.url}/a.zarr"))


@pytest.mark.parametrize("name", ["0/.zarray", ".zattrs"])
def test_refuses_an_image_without_its_metadata(served, tmp_path, name):
    (tmp_path / "served" / "a.zarr" / name).unlink()
    with pytest.raises(ImageReadError):
        open_slide(address_file(tmp_path, f"{served.url}/a.zarr"))


def test_a_missing_chunk_is_an_error_and_not_black(served, tmp_path):
    chunk = next(it for it in (tmp_path / "served" / "a.zarr" / "0").rglob("*") if it.is_file() and it.name[0] != ".")
    chunk.unlink()
    path = address_file(tmp_path, f"{served.url}/a.zarr")
    with (
        open_slide(path) as slide,
        pytest.raises(ImageReadError, match=r"expected all chunks, .* is missing: it would be read as black"),
    ):
        slide.read_region(0, 0, 0, slide.width, slide.height)


def test_a_server_that_ends_in_the_middle_is_an_error_that_passes(served, tmp_path, pixels):
    path = address_file(tmp_path, f"{served.url}/a.zarr")
    with open_slide(path) as slide:
        slide.read_region(0, 0, 0, 64, 64)
        served.close()
        with pytest.raises(SlideUnavailableError) as caught:
            slide.read_region(0, 64, 64, 64, 64)
    assert is_transient(caught.value)
    with pytest.raises(SlideUnavailableError):
        open_slide(path)


@pytest.mark.parametrize("fault", ["closed", "status", "cut off"])
def test_a_fault_that_passes_is_tried_again(served, tmp_path, pixels, fault):
    failed = set()

    def answer(request):
        if not is_chunk(request) or request.path in failed:
            return False
        failed.add(request.path)
        if fault == "status":
            request.send_error(503)
        elif fault == "cut off":
            request.send_response(200)
            request.send_header("Content-Length", "1000000")
            request.end_headers()
            request.wfile.write(b"part")
        request.close_connection = True
        return True

    served.answer = answer
    with open_slide(address_file(tmp_path, f"{served.url}/a.zarr")) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 320, 256), pixels)
    assert failed


def test_a_slow_server_is_not_waited_for_without_end(served, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_zarr, "_SECONDS", 0.3)
    ended = threading.Event()

    def answer(request):
        return is_chunk(request) and bool(ended.wait(200) or True)

    with open_slide(address_file(tmp_path, f"{served.url}/a.zarr")) as slide:
        served.answer = answer
        started = time.monotonic()
        with pytest.raises(SlideUnavailableError, match=r"no answer in 0\.3 s"):
            slide.read_region(0, 0, 0, 64, 64)
    ended.set()
    assert time.monotonic() - started < 100


def test_shards_of_a_server_that_cannot_read_parts_are_refused(server, tmp_path, pixels):
    """Else the beginning of the shard would be taken for each of its chunks."""
    group = zarr.open_group(tmp_path / "served" / "a.zarr", mode="w", zarr_format=3)
    array = group.create_array("0", shape=(3, 256, 320), chunks=(1, 16, 16), shards=(3, 128, 160), dtype="u1")
    array[:] = pixels.transpose(2, 0, 1)
    scales = [{"axes": ["c", "y", "x"], "version": "0.5", "datasets": [{"path": "0"}]}]
    group.attrs.update({"ome": {"multiscales": scales}})
    with open_slide(address_file(tmp_path, f"{server.url}/a.zarr")) as slide:
        with pytest.raises(ImageReadError, match="cannot read parts of files"):
            slide.read_region(0, 0, 0, 16, 16)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 320, 256), pixels)  # whole shards


def test_its_hash_is_of_what_it_shows(served, tmp_path, pixels):
    path = address_file(tmp_path, f"{served.url}/a.zarr")
    before = source_sha256(path)
    hashes = KnownHashes(tmp_path / "hashes")
    assert hashes.sha256(path) == before == source_state(path)
    write_zarr(tmp_path / "served" / "b.zarr", pixels)
    assert source_sha256(address_file(tmp_path, f"{served.url}/b.zarr")) == before  # moved
    other = pixels.copy()
    other[100, 100] ^= 1
    write_zarr(tmp_path / "served" / "b.zarr", other)
    assert hashes.sha256(path) != before  # though the address file is as it was
    write_zarr(tmp_path / "served" / "b.zarr", pixels[:, :256])
    assert source_sha256(path) != before


def test_the_hash_of_a_large_coarsest_level_is_of_places(server, tmp_path, monkeypatch):
    monkeypatch.setattr("microseg.slides.zarr_image._WHOLE", 1000)
    monkeypatch.setattr("microseg.slides.zarr_image._SIDE", 16)
    blank = np.full((256, 320, 3), 200, np.uint8)
    path = address_file(tmp_path, f"{server.url}/a.zarr")
    digests = set()
    for place in ((0, 0), (254, 318), (254, 0), (126, 158), (None, None)):
        other = blank.copy()
        if place[0] is not None:
            other[place] = 1
        write_zarr(tmp_path / "served" / "a.zarr", other)
        digests.add(source_sha256(path))
    assert len(digests) == 4  # the one in the middle is between the places


def test_a_file_system_that_is_not_installed_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ImageReadError, match="Install the package of its file system"):
        open_slide(address_file(tmp_path, "s3://bucket/a.zarr"))
