import hashlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from microseg.datasets.versions import file_hashes, store
from microseg.datasets.versions.history import DatasetVersion
from microseg.datasets.versions.store import DatasetStore
from microseg.errors import LabError, VersioningError, is_transient

LABS = ("north", "south")
NO_SUCH = f"{'0' * 32}.dir"


def fill(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(folder):
    """The files that DVC keeps below a cache or a remote."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.parent.parent.name == "md5")


ONE = {"images/a.png": b"a", "images/b.png": b"b", "masks/a.png": b"mask", "lab.yaml": b"lab: north\r\n"}
TWO = ONE | {"images/b.png": b"changed", "images/c.png": b"c"}


@pytest.fixture
def datasets(tmp_path):
    datasets = DatasetStore(tmp_path / "data", str(tmp_path / "remote"))
    for lab in LABS:
        fill(datasets.labs / lab, ONE if lab == "north" else {"images/s.png": b"s"})
    return datasets


def wipe_cache(datasets):
    shutil.rmtree(datasets.root / ".dvc" / "cache")


# --- commit


def test_digest_follows_the_specification_of_dvc(datasets):
    listed = [{"md5": hashlib.md5(ONE[name]).hexdigest(), "relpath": name} for name in sorted(ONE)]
    digest = hashlib.md5(json.dumps(listed).encode()).hexdigest()
    version = datasets.commit("north")
    assert (version.lab, version.digest) == ("north", f"{digest}.dir")
    assert (version.files, version.bytes) == (4, sum(map(len, ONE.values())))


def test_dvc_command_line_sees_a_clean_repository(datasets, monkeypatch):
    from dvc.cli import main

    monkeypatch.chdir(datasets.root)
    datasets.commit("north")
    assert main(["status", "--quiet"]) == main(["status", "--quiet", "--cloud"]) == 0
    fill(datasets.labs / "north", {"images/new.png": b"new"})
    assert main(["status", "--quiet"]) == 1


def test_commit_does_not_change_the_dataset(datasets):
    before = contents(datasets.labs / "north")
    datasets.commit("north")
    assert contents(datasets.labs / "north") == before
    assert os.access(datasets.labs / "north" / "images" / "a.png", os.W_OK)


def test_commit_of_unchanged_dataset_adds_no_version(datasets):
    assert datasets.history("north") == ()
    first = datasets.commit("north")
    assert datasets.commit("north") == first == datasets.history("north")[-1]
    (entry,) = datasets.history("north")
    assert (entry.digest, entry.files, entry.bytes) == (first.digest, first.files, first.bytes)
    assert datetime.fromisoformat(entry.committed_at).tzinfo is not None


def test_history_keeps_repeated_versions(datasets):
    digests = []
    for version in (ONE, TWO, ONE):
        shutil.rmtree(datasets.labs / "north")
        fill(datasets.labs / "north", version)
        digests.append(datasets.commit("north").digest)
    assert digests[0] == digests[2] != digests[1]
    assert [entry.digest for entry in datasets.history("north")] == digests
    assert datasets.history("north")[-1].digest == digests[2]


def test_labs_are_independent(datasets):
    north = datasets.commit("north")
    south = datasets.commit("south")
    assert datasets.history("north")[-1] == north
    assert datasets.history("south")[-1] == south
    assert contents(datasets.checkout("south", south.digest)) == {"images/s.png": b"s"}


def test_rejects_commit_without_dataset(datasets):
    with pytest.raises(VersioningError, match="expected the dataset of lab east, found none"):
        datasets.commit("east")
    (datasets.labs / "east").mkdir()
    with pytest.raises(VersioningError, match="expected the dataset of lab east, found none"):
        datasets.commit("east")


@pytest.mark.parametrize("call", ["commit", "history", "checkout"])
def test_rejects_invalid_lab_names(datasets, call):
    with pytest.raises(LabError, match="lower-case letters"):
        getattr(datasets, call)("../north", *([NO_SUCH] if call == "checkout" else []))


def test_commit_repairs_an_interrupted_replacement(datasets):
    (datasets.labs / "north").rename(datasets.labs / ".north.old")
    assert datasets.commit("north").files == len(ONE)


# --- checkout


def test_checkout_restores_an_earlier_version(datasets, monkeypatch, tmp_path):
    first = datasets.commit("north")
    fill(datasets.labs / "north", TWO)
    second = datasets.commit("north")
    monkeypatch.chdir(tmp_path)  # DVC resolves some paths against the current folder
    old = datasets.checkout("north", first.digest)
    assert old == datasets.root / "checkouts" / "north" / first.digest
    assert contents(old) == ONE
    assert contents(datasets.checkout("north", second.digest)) == TWO
    assert contents(datasets.labs / "north") == TWO
    assert Path.cwd() == tmp_path
    assert {path.name for path in old.parent.iterdir()} == {first.digest, second.digest}


def test_checkout_from_the_remote_only(datasets, tmp_path):
    first = datasets.commit("north")
    fill(datasets.labs / "north", TWO)
    datasets.commit("north")
    wipe_cache(datasets)
    assert contents(datasets.checkout("north", first.digest)) == ONE
    elsewhere = DatasetStore(tmp_path / "another machine", datasets.remote)
    assert contents(elsewhere.checkout("north", first.digest)) == ONE


def test_ensure_current_restores_the_latest_version(datasets):
    datasets.commit("north")
    fill(datasets.labs / "north", TWO)
    datasets.commit("north")
    assert not datasets.ensure_current("north")  # it is there
    shutil.rmtree(datasets.labs / "north")
    wipe_cache(datasets)
    assert datasets.ensure_current("north")
    assert contents(datasets.labs / "north") == TWO
    fill(datasets.labs / "north", {"images/d.png": b"d"})  # it can be changed, the version cannot
    assert datasets.commit("north").files == len(TWO) + 1


def test_ensure_current_ignores_an_unknown_lab(datasets):
    assert not datasets.ensure_current("east")
    assert not (datasets.labs / "east").exists()


def test_checkout_from_the_cache_only(datasets, tmp_path):
    version = datasets.commit("north")
    shutil.rmtree(tmp_path / "remote")
    assert contents(datasets.checkout("north", version.digest)) == ONE


def test_checkout_is_read_only_and_reused(datasets, monkeypatch):
    version = datasets.commit("north")
    folder = datasets.checkout("north", version.digest)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in folder.rglob("*") if path.is_file())
    monkeypatch.setattr(store, "opened", None)  # DVC is not needed any more
    assert datasets.checkout("north", version.digest) == folder


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_checkout_restores_a_modified_version(datasets, damage):
    version = datasets.commit("north")
    folder = datasets.checkout("north", version.digest)
    path = folder / ("new.png" if damage == "added" else "images/a.png")
    path.unlink(missing_ok=True)
    if damage != "missing":
        path.write_bytes(b"other")
    assert contents(datasets.checkout("north", version.digest)) == ONE


def test_modifying_a_checkout_does_not_change_the_cache(datasets):
    version = datasets.commit("north")
    path = datasets.checkout("north", version.digest) / "images" / "a.png"
    path.chmod(0o644)
    path.write_bytes(b"other")
    assert contents(datasets.labs / "north") == ONE
    assert contents(datasets.checkout("north", version.digest)) == ONE


def test_checkout_fetches_damaged_cache_files_again(datasets):
    version = datasets.commit("north")
    for path in objects(datasets.root / ".dvc" / "cache"):
        path.chmod(0o644)
        path.write_bytes(b"damaged")
        path.chmod(0o444)
    assert contents(datasets.checkout("north", version.digest)) == ONE


def test_checkout_removes_files_of_a_killed_one(datasets):
    version = datasets.commit("north")
    fill(datasets.root / "checkouts" / "north" / ".0.part", {"half": b"half"})
    folder = datasets.checkout("north", version.digest)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "digest", ["", "x", "0f" * 16, f"{'0F' * 16}.dir", f"../{'0f' * 16}.dir", f"{'0f' * 16}.dir\n"]
)
def test_rejects_malformed_digest(datasets, digest):
    with pytest.raises(VersioningError, match=r"32 hexadecimal digits and '\.dir'"):
        datasets.checkout("north", digest)


def test_each_file_is_hashed_once_per_process(datasets, monkeypatch):
    hashed = []
    digest = file_hashes.file_digest
    monkeypatch.setattr(file_hashes, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))
    version = datasets.commit("north")
    folder = datasets.checkout("north", version.digest)
    assert datasets.checkout("north", version.digest) == folder
    assert [name for name in hashed if not str(name).endswith(".dir")] == []  # DVC hashed them at the commit
    hashed.clear()
    file_hashes._hashed.clear()  # another process
    assert datasets.checkout("north", version.digest) == folder
    assert sorted(hashed) == sorted(str(path) for path in folder.rglob("*") if path.is_file())
    hashed.clear()
    assert DatasetStore(datasets.root, datasets.remote).checkout("north", version.digest) == folder
    assert hashed == []
    file_hashes._hashed.clear()
    shutil.rmtree(folder)
    datasets.checkout("north", version.digest)
    cached = [name for name in hashed if not str(name).endswith(".dir")]  # files in the cache; copies are not hashed
    assert len(set(cached)) == len(cached) == len(ONE)
    assert not any(Path(name).is_relative_to(folder) for name in cached)


def test_rejects_unknown_version(datasets):
    datasets.commit("north")
    with pytest.raises(
        VersioningError, match=f"lab north: expected version {NO_SUCH} in .*remote, got no such version"
    ):
        datasets.checkout("north", NO_SUCH)
    with pytest.raises(VersioningError, match="hexadecimal digits"):
        datasets.checkout("north", "../../etc")
    assert not list((datasets.root / "checkouts" / "north").iterdir())


def test_rejects_incomplete_remote(datasets, tmp_path):
    version = datasets.commit("north")
    wipe_cache(datasets)
    next(path for path in objects(tmp_path / "remote") if path.suffix != ".dir").unlink()
    with pytest.raises(VersioningError, match=f"{version.digest} in .*got one that lacks 1 of 4 files"):
        datasets.checkout("north", version.digest)
    assert not list((datasets.root / "checkouts" / "north").iterdir())


@pytest.mark.parametrize("suffix", ["", ".dir"])
def test_rejects_damaged_remote(datasets, tmp_path, suffix):
    version = datasets.commit("north")
    wipe_cache(datasets)
    path = next(path for path in objects(tmp_path / "remote") if path.suffix == suffix)
    path.chmod(0o644)
    path.write_bytes(b"[]")
    with pytest.raises(VersioningError, match=f"lab north: expected version {version.digest}"):
        datasets.checkout("north", version.digest)
    assert not list((datasets.root / "checkouts" / "north").iterdir())


# --- the remote


def test_commit_pushes_files_missing_in_the_remote(datasets, tmp_path):
    version = datasets.commit("north")
    before = contents(tmp_path / "remote")
    next(path for path in objects(tmp_path / "remote") if path.suffix != ".dir").unlink()
    assert datasets.commit("north") == version
    assert contents(tmp_path / "remote") == before
    shutil.rmtree(tmp_path / "remote")
    datasets.commit("north")
    assert contents(tmp_path / "remote") == before


def test_commit_pushes_all_files_to_another_remote(datasets, tmp_path):
    version = datasets.commit("north")
    moved = DatasetStore(datasets.root, str(tmp_path / "another"))
    moved.commit("north")
    shutil.rmtree(tmp_path / "remote")
    wipe_cache(datasets)
    assert contents(moved.checkout("north", version.digest)) == ONE


def test_keeps_other_settings_of_dvc(datasets, tmp_path):
    datasets.commit("north")
    config = datasets.root / ".dvc" / "config"
    config.write_text(f"{config.read_text()}    verify = true\n")
    DatasetStore(datasets.root, str(tmp_path / "another")).commit("north")
    assert "verify = true" in config.read_text()
    assert "another" in config.read_text()


def test_remote_inside_by_default(tmp_path):
    datasets = DatasetStore(tmp_path / "data", None)
    fill(datasets.labs / "north", ONE)
    version = datasets.commit("north")
    wipe_cache(datasets)
    assert len(objects(tmp_path / "data" / "remote")) == 5
    assert contents(datasets.checkout("north", version.digest)) == ONE


def test_relative_remote(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets = DatasetStore(Path("data"), "remote")
    fill(datasets.labs / "north", ONE)
    monkeypatch.chdir("/")
    datasets.commit("north")
    assert len(objects(tmp_path / "remote")) == 5


@pytest.mark.parametrize("kind", ["a file", "a folder that cannot be written", "an unknown kind"])
def test_rejects_unusable_remote(datasets, tmp_path, kind):
    remote = tmp_path / "unusable"
    if kind == "a file":
        remote.write_text("no folder")
    elif kind == "a folder that cannot be written":
        remote.mkdir()
        (remote / "files").write_text("no folder")
    else:
        remote = "carrier-pigeon://coop"
    datasets = DatasetStore(datasets.root, str(remote))
    with pytest.raises(VersioningError, match=r"lab north: expected to push .*north to .*, got .*is the right remote"):
        datasets.commit("north")
    assert datasets.history("north") == ()


def test_commit_fails_if_the_remote_lacks_files(datasets, monkeypatch):
    from dvc.data_cloud import DataCloud

    monkeypatch.setattr(DataCloud, "transfer", lambda *_, **__: None)
    with pytest.raises(VersioningError, match="a remote that lacks 5 of 5 files after the push"):
        datasets.commit("north")
    assert datasets.history("north") == ()


# --- location of the store


def test_store_inside_git_and_another_dvc_repository(tmp_path, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.setattr(logging.getLogger("dvc"), "handlers", [])  # DVC's keep the output of whoever imported it first
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("/data/\n")
    Repo.init(str(tmp_path)).close()
    outer = contents(tmp_path)
    datasets = DatasetStore(tmp_path / "data", None)
    fill(datasets.labs / "north", ONE)
    version = datasets.commit("north")
    wipe_cache(datasets)
    assert contents(datasets.checkout("north", version.digest)) == ONE
    assert {name: content for name, content in contents(tmp_path).items() if not name.startswith("data/")} == outer
    assert not list((tmp_path / "data").rglob(".gitignore"))


def test_store_can_be_moved(datasets, tmp_path):
    version = datasets.commit("north")
    datasets.root.rename(tmp_path / "moved")
    moved = DatasetStore(tmp_path / "moved", datasets.remote)
    assert moved.commit("north") == version
    assert not datasets.root.exists()
    assert (moved.root / ".dvc" / "tmp" / "site").is_dir()  # DVC's index is in the store, not in the system


def test_rejects_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(VersioningError, match="expected a writable folder"):
        DatasetStore(tmp_path / "file" / "data", None).commit("north")


def test_only_labs_are_versioned(datasets):
    fill(datasets.root, {"quarantine/north/x.png": b"x", "incoming/dvc.yaml": b"one that DVC cannot read: ["})
    version = datasets.commit("north")
    assert version.files == len(ONE)
    assert len(objects(datasets.root / ".dvc" / "cache")) == 5


def test_rejects_damaged_history(datasets):
    datasets.commit("north")
    path = datasets.root / "history" / "north.jsonl"
    path.write_text(path.read_text() + "{half")
    with pytest.raises(VersioningError, match=r"north\.jsonl: expected one JSON object a line"):
        datasets.history("north")


# --- output and concurrency


def logger_settings():
    import dvc  # noqa: F401 - importing it configures the loggers

    loggers = [
        logging.getLogger(name) for name in ("dvc", "dvc_data", "dvc_objects", "dvc.progress", "dvc_data.callbacks")
    ]
    return [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]


def test_prints_nothing_and_restores_loggers(datasets, capfd, caplog, monkeypatch):
    from dvc.ui import ui
    from rich.console import Console

    monkeypatch.setenv("DVC_IGNORE_ISATTY", "1")  # as on a terminal
    monkeypatch.setattr(ui, "error_console", Console(stderr=True, force_terminal=True))
    before = logger_settings()
    datasets.commit("north")
    with pytest.raises(VersioningError):
        datasets.checkout("north", NO_SUCH)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert logger_settings() == before


def test_concurrent_stores_restore_loggers(tmp_path):
    before = logger_settings()
    stores = [DatasetStore(tmp_path / name, None) for name in "abcd"]
    for each in stores:
        fill(each.labs / "north", ONE)
    threads = [threading.Thread(target=each.commit, args=("north",)) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logger_settings() == before
    assert all(each.history("north")[-1] for each in stores)


def test_dvc_is_imported_lazily():
    code = """
import sys
from microseg.datasets.versions.history import DatasetVersion
from microseg.datasets.versions.store import DatasetStore
assert DatasetStore("x", None).history("north") == ()
assert "dvc" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(store.__file__).parents[2])


def test_concurrent_commits_and_checkouts(datasets):
    results, failures = [], []

    def work(lab):
        try:
            version = datasets.commit(lab)
            results.append((lab, contents(datasets.checkout(lab, version.digest))))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(lab,)) for lab in LABS * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(found == (ONE if lab == "north" else {"images/s.png": b"s"}) for lab, found in results)
    assert [len(datasets.history(lab)) for lab in LABS] == [1, 1]


def test_remote_that_cannot_be_written_passes(datasets, tmp_path):
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "files").touch()
    with pytest.raises(VersioningError) as caught:
        datasets.commit("north")
    assert is_transient(caught.value)
    (tmp_path / "remote" / "files").unlink()
    datasets.commit("north")


def test_incomplete_version_and_unknown_remote_do_not_pass(datasets, tmp_path):
    with pytest.raises(VersioningError) as unknown:
        datasets.checkout("north", NO_SUCH)
    with pytest.raises(VersioningError) as kind:
        DatasetStore(tmp_path / "other", "gopher://x/y").check_remote()
    assert not is_transient(unknown.value)
    assert not is_transient(kind.value)


# --- several machines


@pytest.fixture
def machines(tmp_path):
    """Stores of two machines with one remote; the first has a version of lab north."""
    stores = [DatasetStore(tmp_path / name, str(tmp_path / "shared")) for name in ("one", "two")]
    fill(stores[0].labs / "north", ONE)
    stores[0].commit("north")
    return stores


def test_history_is_shared_through_the_remote(machines):
    one, two = machines
    assert two.history("north") == ()
    assert two.refresh_all() == ("north",)
    assert two.history("north") == one.history("north")
    assert two.ensure_current("north")
    assert contents(two.labs / "north") == ONE
    fill(two.labs / "north", TWO)
    two.commit("north")
    assert [version.number for version in two.history("north")] == [1, 2]
    assert one.refresh("north") == two.history("north")
    assert one.ensure_current("north")
    assert not one.ensure_current("north")
    assert contents(one.labs / "north") == TWO


def test_history_of_before_is_put_into_the_remote(machines, tmp_path):
    """microseg 0.1 kept it on the machine only, without numbers."""
    one, two = machines
    shutil.rmtree(tmp_path / "shared" / "microseg")
    path = one.root / "history" / "north.jsonl"
    stated = json.loads(path.read_text())
    del stated["number"]
    path.write_text(json.dumps(stated) + "\n")
    (one.root / "history" / "north.base").unlink()
    fill(one.labs / "north", TWO)
    one.commit("north")
    assert [version.number for version in two.refresh("north")] == [1, 2]


def test_commit_on_top_of_an_older_version_is_refused_and_repeated_after_restoring(machines):
    one, two = machines
    two.ensure_current("north")
    fill(one.labs / "north", {"images/one.png": b"one"})
    fill(two.labs / "north", {"images/two.png": b"two"})
    one.commit("north")
    with pytest.raises(VersioningError, match="another machine has changed: it is version 2 now") as caught:
        two.commit("north")
    assert is_transient(caught.value)
    assert two.ensure_current("north")
    assert contents(two.labs / "north") == ONE | {"images/one.png": b"one"}
    [aside] = (two.root / "uncommitted").iterdir()
    assert contents(aside) == ONE | {"images/two.png": b"two"}
    fill(two.labs / "north", {"images/two.png": b"two"})  # as the ingest does
    two.commit("north")
    one.ensure_current("north")
    assert contents(one.labs / "north") == ONE | {"images/one.png": b"one", "images/two.png": b"two"}


def test_versions_committed_at_the_same_moment_are_ordered_alike(machines):
    one, two = machines
    digests = [f"{digit * 32}.dir" for digit in "ba"]
    for machine, digest in zip(machines, digests, strict=True):
        history = (*one.history("north"), DatasetVersion("north", digest, 1, 1, "2026-01-01T00:00:00+00:00", 2))
        machine._local.write("north", history)
    two.refresh("north")
    assert one.refresh("north") == two.refresh("north")
    assert [version.digest for version in one.history("north")[1:]] == sorted(digests)


def test_damaged_note_in_the_remote_is_named(machines, tmp_path):
    [note] = (tmp_path / "shared" / "microseg" / "history" / "north").iterdir()
    note.write_text("{")
    with pytest.raises(VersioningError, match=rf"microseg/history/north/{note.name} in the remote: expected the note"):
        machines[1].refresh("north")


def test_remote_that_lost_files_is_filled_again_with_every_version(datasets, tmp_path):
    first = datasets.commit("north")
    fill(datasets.labs / "north", TWO)
    datasets.commit("north")
    before = objects(tmp_path / "remote")
    for path in before[::2]:
        path.chmod(0o644)
        path.unlink()
    datasets.commit("south")  # of another lab
    assert set(before) <= set(objects(tmp_path / "remote"))
    shutil.rmtree(tmp_path / "remote" / "files")
    copied, lost = datasets.complete_remote()
    assert (copied, lost) == (len(before) + 2, {})
    other = DatasetStore(tmp_path / "other", str(tmp_path / "remote"))
    assert contents(other.checkout("north", first.digest)) == ONE


def test_files_that_neither_the_remote_nor_the_cache_has_are_listed(datasets, tmp_path):
    first = datasets.commit("north")
    fill(datasets.labs / "north", TWO)
    second = datasets.commit("north")
    lost = hashlib.md5(b"b").hexdigest()  # a file of the first version only
    for folder in (tmp_path / "remote", datasets.root / ".dvc" / "cache"):
        (path,) = (path for path in objects(folder) if path.parent.name + path.name == lost)
        path.chmod(0o644)
        path.unlink()
    assert datasets.complete_remote() == (0, {("north", first.digest): 1})
    wipe_cache(datasets)
    shutil.rmtree(tmp_path / "remote" / "files")
    assert datasets.complete_remote()[1].keys() == {("north", first.digest), ("north", second.digest)}
