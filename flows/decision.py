"""The gate's decision on a version: in its tags, on its model card, and as a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_link_artifact

from flows.evidence import evaluation_folder, evidence_key, read_pictures
from flows.telemetry import attempt
from flows.workspace import Workspace, open_workspace
from microseg.config.settings import Settings
from microseg.registry.decision import Decision
from microseg.registry.evidence_store import DECISION_PAGE, EVIDENCE_FOLDER
from microseg.registry.version import ModelVersion

if TYPE_CHECKING:  # PyTorch takes seconds
    from microseg.evaluation.comparison import Comparison

__all__ = ["apply_gate", "decide"]


def decide(
    workspace: Workspace,
    version: ModelVersion,
    production: ModelVersion | None,
    comparison: Comparison,
    lab: str | None = None,
) -> Decision:
    """Evaluate the gate on a version; write the decision and the evaluation to its tags and its model card.

    Args:
        workspace: The workspace.
        version: The evaluated version.
        production: The version in production that it was compared with.
        comparison: The evidence on both.
        lab: The version is for the images of this lab only, so it cannot harm the other labs.
    """
    from microseg.registry import gate
    from microseg.registry.model_card import Evaluation, TrainedModel, model_card

    policy = workspace.settings.params.gate
    if lab is not None:
        policy = policy.model_copy(update={"max_source_loss": 1.0, "max_source_f1_loss": 1.0})
    lost = sorted(production.datasets.keys() - version.datasets.keys()) if production and lab is None else []
    decision = replace(
        gate.decide(comparison.candidate, comparison.production, policy, lost_labs=lost),
        version=version.version,
        production_version=production.version if production else None,
    )
    source, target = workspace.labs(version.datasets, missing_ok=version.source_free)
    trained = TrainedModel(
        method=version.tags.get("method", "unknown"),
        network=workspace.network(version).config,
        source=source,
        target=target,
        digests=version.datasets,
        run_params=workspace.registry.runs.params(version.run_id),
        run_id=version.run_id,
        commit=version.tags.get("commit"),
    )
    evaluation = Evaluation(
        candidate=comparison.candidate,
        production=comparison.production,
        scores=comparison.scores,
        decision=decision,
        panels=workspace.registry.attachments.paths(version, EVIDENCE_FOLDER, ".jpg"),
        page=workspace.registry.attachments.link(version, DECISION_PAGE),
    )
    workspace.registry.versions.describe(version, model_card(trained, evaluation))
    workspace.registry.versions.set_tags(version, decision.to_tags())
    return decision


def apply_gate(
    version: ModelVersion,
    other: ModelVersion | None,
    comparison: Comparison,
    settings: Settings,
    lab: str | None = None,
) -> tuple[Decision, Path]:
    """Evaluate the gate on a version, and write the page of the decision, also to the version's run in MLflow.

    Args:
        version: The evaluated version.
        other: The version that it was compared with.
        comparison: The evidence on both.
        settings: Settings of this run.
        lab: See `decide`.

    Returns:
        The decision, and its page.
    """
    from microseg.report.decision_page import Purpose, verdict_sentence, write_decision_page

    workspace = open_workspace(settings)
    decision = decide(workspace, version, other, comparison, lab)
    key = evidence_key(workspace, version, other, comparison.target)
    page = evaluation_folder(key, settings) / Path(DECISION_PAGE).name
    page.parent.mkdir(parents=True, exist_ok=True)
    purpose = Purpose(
        classes=workspace.network(version).config.classes,
        base=version.tags.get("base_version"),
        labs=tuple(sorted(version.datasets)),
        lost=tuple(sorted(other.datasets.keys() - version.datasets.keys())) if other else (),
        scope=lab,
    )
    write_decision_page(decision, comparison, purpose, read_pictures(version, key, settings), page)
    workspace.registry.attachments.add(version, [page], EVIDENCE_FOLDER)
    link = workspace.registry.attachments.page(version, DECISION_PAGE) or page.as_uri()
    attempt(
        create_link_artifact,
        link,
        link_text=f"Decision page of version {version.version}",
        key="decision-page",
        description=verdict_sentence(decision),
    )
    return decision, page
