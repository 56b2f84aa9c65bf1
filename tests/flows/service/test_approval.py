"""Who decides on a candidate, for each verdict of the gate and each ``promotion.approval``."""

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from flows.service import approval as module
from flows.service import events
from flows.service.approval import Approval
from microseg.config.settings import load_settings
from microseg.registry.decision import ACCEPTED, MET, NEEDS_REVIEW, NOT_MET, REFUSED, UNCLEAR, Decision, RuleResult
from microseg.registry.version import ModelVersion

DECISIONS = {
    ACCEPTED: Decision(ACCEPTED, (RuleResult(MET, "a", "Kept."),), 3, 2),
    REFUSED: Decision(REFUSED, (RuleResult(NOT_MET, "a", "Lost."),), 3, 2),
    NEEDS_REVIEW: Decision(NEEDS_REVIEW, (RuleResult(UNCLEAR, "a", "Far more: look."),), 3, 2),
}
CANNOT_TELL = "The gate cannot tell whether it is better than version 2: a person must look. Far more: look."


class Desk:
    """What was asked, notified and promoted, in place of Prefect and MLflow."""

    def __init__(self, patch: pytest.MonkeyPatch, verdict: str, answer: Approval | None) -> None:
        self.decision, self.answer = DECISIONS[verdict], answer
        self.asked: list[str] = []
        self.events: list[tuple[Any, ...]] = []
        self.promoted: list[tuple[str | None, str | None]] = []  # reason, by
        patch.setattr(module, "promote", self.promote)
        patch.setattr(module, "notify", lambda *event, identity: self.events.append((*event, identity)))
        patch.setattr(module, "create_markdown_artifact", lambda *_, **__: None)
        patch.setattr(module, "get_run_logger", lambda: SimpleNamespace(info=lambda *_: None))
        patch.setattr(module, "suspend_flow_run", self.suspend)
        patch.setattr(module, "deployment", SimpleNamespace(id="a deployment" if answer else None))

    def promote(
        self, version: str, lab: str | None, override: str | None = None, by: str | None = None, changes: Any = ()
    ) -> Decision:
        decision = replace(self.decision, override=override)
        if decision.promoted:
            self.promoted.append((override, by))
        return decision

    def suspend(self, wait_for_input: Any, **_: Any) -> Approval:
        self.asked.append(wait_for_input._description)
        assert self.answer is not None
        return self.answer


def request(desk: Desk, approval: str) -> str:
    tags = desk.decision.to_tags()
    candidate = ModelVersion(3, "run", None, ("candidate",), tags, {}, datetime.now(UTC), "A card.")
    settings = load_settings((f"promotion.approval={approval}",))
    return module.request_approval(candidate, "lab_c", settings, ())


@pytest.mark.parametrize("approval", ["gate", "mlflow", "prefect"])
@pytest.mark.parametrize("verdict", DECISIONS)
@pytest.mark.parametrize("served", [False, True])
def test_who_decides(monkeypatch: pytest.MonkeyPatch, approval: str, verdict: str, served: bool) -> None:
    desk = Desk(monkeypatch, verdict, Approval(promote=True, by="ann", reason="compared") if served else None)
    message = request(desk, approval)
    cannot_tell = verdict == NEEDS_REVIEW
    by_gate = approval == "gate" and not cannot_tell
    in_prefect = served and approval != "mlflow" and not by_gate
    assert len(desk.events) == cannot_tell  # exactly then somebody is notified
    assert len(desk.asked) == in_prefect
    if by_gate:
        assert "by the decision of the gate" in message
        assert desk.promoted == ([(None, "the gate")] if verdict == ACCEPTED else [])
    elif in_prefect:
        assert message == "Version 3 is in production: approved by ann. compared"
        assert desk.promoted == [("compared", "ann")]
        assert (CANNOT_TELL in desk.asked[0]) == cannot_tell
    else:
        assert message.startswith("Version 3 is the candidate for lab_c. The gate ")
        assert message.endswith("and set the alias production on it in MLflow.")
        assert ("Nothing needs to be done" in message) == (verdict == REFUSED)
        assert (CANNOT_TELL in message) == cannot_tell
        assert desk.promoted == []


def test_rejected_in_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, NEEDS_REVIEW, Approval(promote=False, by="ann", reason="it marks whole cells"))
    assert request(desk, "gate") == "Version 3 was rejected by ann. it marks whole cells"
    assert desk.promoted == []


def test_event_names_the_version_and_why_once(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, NEEDS_REVIEW, None)
    for _ in range(2):  # as a run that is resumed
        request(desk, "mlflow")
    (name, resource, payload, identity), again = desk.events
    assert (name, resource) == ("microseg.review.requested", "microseg.version.3")
    assert payload == {"version": 3, "lab": "lab_c", "message": CANNOT_TELL}
    assert again[-1] == identity  # the server keeps one


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/api", None])
def test_notification_that_fails_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str | None
) -> None:
    def emit(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(events, "emit", emit)
    monkeypatch.setattr(events, "PREFECT_API_URL", SimpleNamespace(value=lambda: url))
    events.notify("microseg.review.requested", "microseg.version.3", {}, identity="1")
    assert ("could not be emitted" in caplog.text) == (url is not None)


def test_the_run_links_the_decision_page(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, str] = {}
    page = "http://mlflow/#/experiments/1/runs/run/artifacts/evaluation/decision.html"
    attachments = SimpleNamespace(page=lambda version, path: page if path == "evaluation/decision.html" else None)
    registry = SimpleNamespace(attachments=attachments)
    monkeypatch.setattr(module, "open_workspace", lambda settings: SimpleNamespace(registry=registry))
    monkeypatch.setattr(module, "create_markdown_artifact", lambda text, key: shown.update({key: text}))
    candidate = ModelVersion(3, "run", None, ("candidate",), {}, {}, datetime.now(UTC), "A card.")
    module.show_decision("A message.", candidate, "lab_c", load_settings(()))
    assert shown == {"decision": f"# lab_c\n\nA message.\n\n[Decision page of version 3]({page})"}
