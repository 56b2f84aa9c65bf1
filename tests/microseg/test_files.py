"""Paths below allowed folders."""

from pathlib import Path

from microseg.files import is_below


def test_paths_below_a_folder_are_found_with_their_links_followed(tmp_path: Path) -> None:
    share, secret = tmp_path / "share", tmp_path / "secret"
    for folder in (share, secret):
        folder.mkdir()
    (share / "images").symlink_to(secret)
    (tmp_path / "mount").symlink_to(share)
    assert is_below(share / "a.png", [share])
    assert is_below(share, [share])
    assert is_below(tmp_path / "mount" / "a.png", [share])
    assert is_below(share / "a.png", [tmp_path / "mount"])
    assert not is_below(share / ".." / "secret", [share])
    assert not is_below(share / "images" / "a.png", [share])
    assert not is_below(tmp_path / "shared", [share])
    assert not is_below(share, [])


def test_links_in_a_circle_are_below_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not is_below(tmp_path / "a", [tmp_path])
