"""A lab lands, without a server of its own: `test_service.py` has the events."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from flows import onboard as module
from flows.onboard import onboard
from flows.reconcile import reconcile
from flows.service import drop_folder
from flows.workspace import open_workspace
from microseg.config.settings import load_settings
from microseg.datasets.onboarding import DropFolder, Onboarding, read_incoming_folder
from microseg.errors import LabError

Run = Callable[..., Result]


def landed(folder: Path, *changes: str) -> Any:
    return onboard(folder, changes, return_state=True)


@pytest.fixture
def lab_c(tmp_path: Path, incoming_labs: tuple[Path, Path]) -> Path:
    folder = tmp_path / "incoming" / "lab_c"
    shutil.copytree(incoming_labs[1], folder)
    (folder / "lab.yaml").write_text((folder / "lab.yaml").read_text().replace("lab_b", "lab_c"))
    return folder


def test_one_candidate_for_one_delivery(copied: Any, lab_c: Path) -> None:
    state = landed(lab_c)
    assert state.is_completed(), state.message
    assert state.message.startswith("Version 3 is the candidate for lab_c. The gate ")
    candidate = copied.registry.versions.find("candidate")
    assert (candidate.version, candidate.tags["target"], candidate.tags["base_version"]) == (3, "lab_c", "2")
    assert candidate.tags["gate"] in ("accepted", "refused")
    again = landed(lab_c)
    assert again.message.startswith("Nothing to do: this delivery of lab_c was taken over.")
    assert len(copied.registry.versions.all()) == 3

    # killed after the adaptation: what was made is not made again
    kept = open_workspace(load_settings()).onboarding
    kept.write(kept.read("lab_c"), state="running")
    assert landed(lab_c).message.startswith("Version 3 is the candidate")
    assert kept.read("lab_c").attempts == 2

    # by another process, at this moment
    with kept.claimed("lab_c", wait=False):
        assert landed(lab_c).message == "Nothing to do: this delivery of lab_c is being adapted to already."


def test_with_nothing_in_production_the_lab_is_held(fresh: Path, lab_c: Path) -> None:
    state = landed(lab_c)
    assert state.is_completed()
    assert "microseg train a first version" in state.message
    assert open_workspace(load_settings()).onboarding.read("lab_c").state == "held"
    assert reconcile(return_state=True).message == "Nothing to do."


def test_whole_slides_are_refused_and_the_message_counts_them(fresh: Path, lab_c: Path) -> None:
    for name in ("x.svs", "y.ndpi"):
        (lab_c / "images" / name).write_bytes(b"slide")
    state = landed(lab_c)
    assert state.is_completed()
    kept = fresh / "data" / "quarantine" / "lab_c"
    assert f"Files refused: 2 (whole slides among them: 2); the reasons: {kept}/reasons.csv." in state.message
    assert open_workspace(load_settings()).onboarding.read("lab_c").message == state.message
    assert (kept / "images" / "x.svs").read_bytes() == b"slide"


def test_a_delivery_of_slides_alone_is_announced_and_fails_with_what_to_do(
    fresh: Path, lab_c: Path, announced: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for image in list((lab_c / "images").iterdir()):
        image.rename(image.with_suffix(".svs"))
    (lab_c / "images.csv").unlink()
    slides = len(list((lab_c / "images").iterdir()))
    arrivals = DropFolder(lab_c.parent, 0)
    with caplog.at_level("INFO", logger="flows.service.drop_folder"):
        for _ in range(2):
            drop_folder.look(arrivals, load_settings(), set())
    assert announced == [str(lab_c)]
    assert f"has landed (images: 0, whole slides: {slides})" in caplog.text
    assert landed(lab_c).is_failed()
    landing = open_workspace(load_settings()).onboarding.read("lab_c")
    assert landing.state == "failed"
    assert f"all {slides} files are refused, whole slides among them: {slides}." in landing.message
    assert "Export regions of it as PNG or TIFF into images/" in landing.message
    assert (fresh / "data" / "quarantine" / "lab_c" / "reasons.csv").read_text().count("got a whole slide") == slides


def test_a_failed_landing_ends_the_command_with_its_reason(fresh: Path, lab_c: Path, run: Run) -> None:
    (lab_c / "images.csv").unlink()
    for image in (lab_c / "images").iterdir():
        image.write_bytes(b"no image")
    result = run(module.command, lab_c, "--here")
    assert result.exit_code == 1
    assert "expected at least one usable image" in " ".join(result.stderr.split())


def test_what_production_was_made_with_needs_nothing(copied: Any) -> None:
    state = landed(copied.lab_b)
    assert "Version 2, in production, was made with this very dataset of lab_b." in state.message
    assert len(copied.registry.versions.all()) == 2


def test_an_unusable_delivery_fails_and_is_told(copied: Any, lab_c: Path, run: Run) -> None:
    for image in (lab_c / "images").iterdir():
        image.write_bytes(b"no image")
    (lab_c / "images.csv").unlink()
    state = landed(lab_c)
    assert state.is_failed()
    assert open_workspace(load_settings()).onboarding.read("lab_c").state == "failed"
    (lab_c / "lab.yaml").unlink()
    result = run(module.command, lab_c)
    assert result.exit_code == 1
    assert "lab.yaml is missing" in " ".join(result.stderr.split())


def test_the_gate_may_decide_alone(copied: Any, lab_c: Path) -> None:
    lenient = ("gate.max_source_loss=1.0", "gate.min_criterion_gain=-1.0", "gate.min_foreground_ratio=1e-9")
    state = landed(
        lab_c, "promotion.approval=gate", "promotion.per_lab=true", "gate.max_foreground_ratio=1e9", *lenient
    )
    assert state.message.startswith("Version 3 is in production, by the decision of the gate."), state.message
    assert (copied.registry.production.active().version, copied.registry.production.active("lab_c").version) == (2, 3)
    assert copied.registry.production.history()[0].audit.by == "the gate"


# ---- watching


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Prefect is told of, in place of its server."""
    folders: list[str] = []
    monkeypatch.setattr(
        "flows.service.events.emit", lambda _event, _resource, payload: folders.append(payload["folder"])
    )
    return folders


def test_one_word_for_each_delivery(fresh: Path, lab_c: Path, announced: list[str]) -> None:
    settings, told = load_settings(), set()
    arrivals = DropFolder(lab_c.parent, 0)
    for _ in range(4):
        drop_folder.look(arrivals, settings, told)
    assert announced == [str(lab_c)]
    drop_folder.look(DropFolder(lab_c.parent, 0), settings, told)  # after a restart
    for _ in range(2):
        drop_folder.look(arrivals, settings, told)
    assert announced == [str(lab_c)]
    shutil.copy(lab_c / "images" / "lab_b_000.png", lab_c / "images" / "more.png")
    for _ in range(4):
        drop_folder.look(arrivals, settings, told)
    assert announced == [str(lab_c)] * 2


def test_a_delivery_without_a_card_is_told_once_and_waits(
    fresh: Path, lab_c: Path, announced: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (lab_c / "lab.yaml").unlink()
    arrivals, told = DropFolder(lab_c.parent, 0), set()
    for _ in range(3):
        drop_folder.look(arrivals, load_settings(), told)
    assert announced == []
    assert [record.message for record in caplog.records if "lab.yaml is missing" in record.message] == [
        f"{lab_c} is quiet, but lab.yaml is missing: not taken over yet"
    ]


# ---- what events missed


def test_landings_that_were_cut_short(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("flows.reconcile.announce", lambda _event, _resource, payload: told.append(payload["lab"]))
    kept, expected = open_workspace(load_settings()).onboarding, set()
    for number, (state, minutes, attempts, again) in enumerate(
        [
            ("announced", 60, 0, True),
            ("announced", 0, 0, False),
            ("running", 0, 1, True),
            ("running", 0, 3, False),
            ("held", 0, 0, True),
            ("done", 60, 1, False),
            ("failed", 60, 1, False),
            ("waiting", 60, 1, False),
            ("running", 0, 1, False),  # somebody works on it
        ]
    ):
        when = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
        kept.write(Onboarding(f"lab_{number}", "/in/lab", "abc", state, attempts=attempts), when=when)
        expected |= {f"lab_{number}"} if again else set()
    with kept.claimed("lab_8", wait=False):
        message = reconcile(return_state=True).message
    assert set(told) == expected
    assert message.count("cut short") == len(expected)
    with kept.claimed("lab_8", wait=False):
        assert reconcile(return_state=True).message == "Nothing to do."  # they are announced now


def test_reconciling_settles_promotions(copied: Any) -> None:
    copied.registry.versions.set_alias("production", 1)
    state = reconcile(return_state=True)
    assert state.is_completed()
    assert "Version 1 is in production" in state.message


def test_landing_without_a_folder(fresh: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        read_incoming_folder(tmp_path / "absent")
