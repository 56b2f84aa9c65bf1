"""Onboard a lab: ingest its images, adapt the production model to them, evaluate the candidate, decide on it.

    python -m flows.onboard incoming/lab_c

A lab without labels that the production model already suits is not adapted to, unless
``onboarding.adapt_when_suited`` is true.
The event `microseg.lab.arrived` triggers it. The decision is made by a person in MLflow or in Prefect, or by the gate,
as set by ``promotion.approval`` in params.yaml. Another run for the same incoming dataset repeats nothing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid5

import httpx
import typer
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from flows.adapt import adapt
from flows.cli.console import console, progress_bar
from flows.cli.options import SetOption, cli_command
from flows.evaluate import evaluate
from flows.evidence import read_comparison
from flows.ingest import ingest
from flows.promote import audit_info
from flows.service.approval import awaits_approval, request_approval
from flows.service.events import ALREADY_SUITED, check_event_folder, emit_lab_arrived, notify
from flows.telemetry import attempt, step
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.incoming import IncomingDataset, read_incoming_folder
from microseg.datasets.onboarding import (
    Onboarding,
    OnboardingState,
    OnboardingStore,
    after_error,
    after_interruption,
    new_onboarding,
)
from microseg.errors import LabError, is_transient
from microseg.evaluation.suitability import Suitability, measure_suitability
from microseg.registry.registry import Registry
from microseg.registry.version import ModelVersion, candidate_of

__all__ = ["command", "onboard"]


@flow(name="onboard", flow_run_name="onboard {folder}")
def onboard(folder: Path, changes: tuple[str, ...] = ()) -> State[Any]:
    """Ingest a lab's images, adapt the production model to them, evaluate the candidate, decide on it.

    Args:
        folder: The incoming dataset.
        changes: Parameters that override those of params.yaml, ``section.name=value``.

    Returns:
        Completed; the message states the decision to make, or why there was nothing to do.

    Raises:
        LabError: The incoming dataset cannot be used.
        TransientError: A server, a share or a disk is away; the service starts another run later.
    """
    settings = load_settings(changes)
    if deployment.id is not None:
        check_event_folder(folder, settings)
    store = open_workspace(settings).onboarding
    try:
        incoming = _read(folder, settings)
    except (LabError, OSError) as error:
        _record_missing_folder(folder, store, error)
        raise
    if incoming.missing:
        return _wait_for_files(incoming, store)
    with store.lock(incoming.lab, wait=False) as locked:
        if locked:
            return _onboard_once(incoming, store, settings, changes)
    running = store.read(incoming.lab)
    if running and running.knows(incoming):
        return Completed(message=f"Nothing to do: another run is onboarding this dataset of {incoming.lab}.")
    other = f"run {running.flow_run_id} for {running.folder}" if running else "another run"
    get_run_logger().info("Waiting for %s, which is onboarding an earlier dataset of %s", other, incoming.lab)
    with store.lock(incoming.lab, wait=True):  # a newer incoming dataset: after the one before
        return _onboard_once(incoming, store, settings, changes)


def _read(folder: Path, settings: Settings) -> IncomingDataset:
    return read_incoming_folder(folder, roots=settings.allowed_roots, labs=settings.home.labs)


def _record_missing_folder(folder: Path, store: OnboardingStore, error: Exception) -> None:
    """A folder that is gone while its share is there has failed; that of a share which is away is tried again."""
    for onboarding in store.read_all():
        if onboarding.folder == str(folder.absolute()) and onboarding.in_progress:
            share = folder.absolute().parent
            away = not share.is_dir() or not any(share.iterdir())
            failures = onboarding.failures + 1
            store.write(after_error(replace(onboarding, failures=failures), error, passes=away or is_transient(error)))


def _wait_for_files(incoming: IncomingDataset, store: OnboardingStore) -> State[Any]:
    message = f"is incomplete and was not ingested: {incoming.missing}"
    before = store.read(incoming.lab)
    if before is None or not (before.in_progress and before.folder != str(incoming.folder)):
        onboarding = before.following(incoming) if before else new_onboarding(incoming)
        store.write(onboarding, state="incomplete", message=message)
    return Completed(message=f"{incoming.folder} {message}. It is onboarded when it is complete.")


def _onboard_once(
    incoming: IncomingDataset, store: OnboardingStore, settings: Settings, changes: tuple[str, ...]
) -> State[Any]:
    """Onboard an incoming dataset, unless an earlier run has done so or waits for a decision."""
    onboarding = store.read(incoming.lab)
    if onboarding is None:
        onboarding = new_onboarding(incoming)
    elif onboarding.state == "incomplete" or onboarding.fingerprint != incoming.fingerprint:
        onboarding = onboarding.following(incoming)
    elif onboarding.state == "completed":
        return Completed(
            message=f"Nothing to do: this dataset of {incoming.lab} is onboarded already. {onboarding.message}"
        )
    this_run = str(flow_run.id)
    if onboarding.state == "awaiting_approval" and onboarding.flow_run_id != this_run and awaits_approval(onboarding):
        return Completed(message=f"Nothing to do: {onboarding.message}")
    onboarding = store.write(
        onboarding,
        state="running",
        attempts=onboarding.attempts + 1,
        failures=onboarding.failures + 1,  # until it ends otherwise
        crashes=onboarding.crashes + 1,
        flow_run_id=this_run,
    )
    try:
        return _run_steps(incoming, onboarding, store, settings, changes)
    except Exception as error:
        current = store.read(incoming.lab) or onboarding
        passes = True if isinstance(error, httpx.HTTPError) else None  # of Prefect's server
        ended = store.write(after_error(current, error, passes=passes))
        get_run_logger().error("The onboarding of %s is %s: %s", ended.lab, ended.state, ended.message)
        raise
    except BaseException:  # the service ends, a person cancels; or the run is suspended, and awaits approval
        current = store.read(incoming.lab) or onboarding
        if current.state == "running":
            store.write(after_interruption(current))
        raise


def _run_steps(
    incoming: IncomingDataset,
    onboarding: Onboarding,
    store: OnboardingStore,
    settings: Settings,
    changes: tuple[str, ...],
) -> State[Any]:
    with step(f"Ingest {incoming.folder}"):
        ingested = ingest(incoming.folder, changes=changes, metadata=incoming.metadata)
    lab, workspace = ingested.lab, open_workspace(settings)
    onboarding = store.write(onboarding, digest=ingested.digest)

    def end(state: OnboardingState, message: str) -> State[Any]:
        message = f"{message} {ingested.rejections}".rstrip()
        store.write(onboarding, state=state, failures=0, crashes=0, message=message)
        return Completed(message=message)

    base = workspace.production()
    if base is None:
        missing = f"{lab} is ingested, but there is no production model to adapt: run `microseg train` first."
        return end("awaiting_production", missing)
    if base.datasets.get(lab) == ingested.digest:
        trained = f"Version {base.version}, in production, was trained on this version of the dataset of {lab}."
        return end("completed", trained)
    used = workspace.production(lab) or base
    by_criteria = not ingested.labelled and not settings.params.onboarding.adapt_when_suited
    if onboarding.candidate is None and by_criteria:  # corrections of a person are trained on in any case
        with step(f"Check whether version {used.version} suits {lab}"):
            suitability = check_suitability(used, lab, ingested.digest, settings)
        if suitability is not None and suitability.suited:
            message = (
                f"Version {used.version}, in production, already suits {lab}, so nothing needs to be done: "
                f"{suitability}. To adapt it anyway: "
                f"microseg onboard {incoming.folder} --set onboarding.adapt_when_suited=true"
            )
            attempt(create_markdown_artifact, f"# {lab}: already suited\n\n{message}", key="decision")
            payload = {"lab": lab, "version": used.version, "message": message}
            identity = str(uuid5(NAMESPACE_URL, f"{used.uri}#{used.run_id}#{lab}#{ingested.digest}"))
            workspace.registry.production.record_kept(used, lab, audit=audit_info(reason=message))
            notify(ALREADY_SUITED, f"microseg.lab.{lab}", payload, identity=identity)
            return end("already_suited", message)
    candidate = _earlier_candidate(workspace.registry, onboarding, base)
    if candidate is None:
        with step(f"Adapt version {base.version} to {lab}"):
            candidate = adapt(lab, base=str(base.version), digest=ingested.digest, changes=changes)
    elif candidate.version not in (base.version, used.version):  # the process may have been killed before it did so
        workspace.registry.versions.set_alias(candidate_of(lab), candidate)
    onboarding = store.write(onboarding, candidate=candidate.version)
    production = workspace.production(lab)
    if read_comparison(candidate, production, settings) is None:
        against = {"against": str(production.version)} if production else {}
        with step(f"Evaluate version {candidate.version} on {lab}"):
            evaluate(str(candidate.version), lab=lab, changes=changes, **against)
    waiting = f"Version {candidate.version} awaits a decision."
    store.write(onboarding, state="awaiting_approval", message=waiting)
    return end("completed", request_approval(workspace.registry.versions.find(candidate), lab, settings, changes))


@task
def check_suitability(version: ModelVersion, lab: str, digest: str | None, settings: Settings) -> Suitability | None:
    """Measure whether a version already suits a lab, and log the measurements with the version in MLflow.

    Returns:
        The measurements; None if the version has no reference distribution, or if its source images are not on this
        machine where these may not leave their hospital.
    """
    workspace, params = open_workspace(settings), settings.params
    versions = workspace.registry.versions
    reference = versions.reference_distribution(version)
    source_free = version.source_free or params.adapt.source == "none"
    source, _ = workspace.labs(version.datasets, missing_ok=source_free)
    if reference is None or not source:
        return None
    dataset, digest = workspace.lab(lab, digest)
    with progress_bar(f"Evaluating version {version.version} on {lab}", None) as advance:
        suitability = measure_suitability(
            workspace.engine(workspace.network(version)),
            dataset,
            source,
            reference,
            max_loss=params.onboarding.max_consistency_loss,
            policy=params.out_of_distribution,
            on_image=advance,
        )
    summary = suitability.out_of_distribution
    metrics = {"ood_score": summary.median_score, "ood_share": summary.share}
    metrics |= {"augmentation_consistency": suitability.consistency}
    named = {f"{name}/{lab}": value for name, value in metrics.items()}
    versions.log_metrics(version, named, dataset=(lab, digest))
    return suitability


def _earlier_candidate(registry: Registry, onboarding: Onboarding, base: ModelVersion) -> ModelVersion | None:
    """The candidate that an interrupted run adapted to the same version of the dataset; None where there is none."""
    for version in registry.versions.all():
        adapted_to = (version.tags.get("target"), version.datasets.get(onboarding.lab))
        same_base = version.tags.get("base_version") == str(base.version) or version.version == onboarding.candidate
        if adapted_to == (onboarding.lab, onboarding.digest) and same_base:
            return version
    return None


@cli_command()
def command(
    folder: Annotated[Path, typer.Argument(help="The incoming dataset: images/, lab.yaml, masks/ where labelled.")],
    here: Annotated[
        bool, typer.Option("--here", help="Run in this process, even if a Prefect server is configured.")
    ] = False,
    changes: SetOption = None,
) -> None:
    """Onboard a lab: ingest its images, adapt the production model to them, evaluate the candidate.

    With a Prefect server (PREFECT_API_URL) this emits the event microseg.lab.arrived, which triggers the deployment
    `onboard`; without one it runs in this process.

    Example: microseg onboard incoming/lab_c
    """
    incoming = _read(folder, settings := load_settings())
    if incoming.missing:
        raise LabError(f"{incoming.folder}: expected a complete incoming dataset, but {incoming.missing}.")
    if PREFECT_API_URL.value() and not here and not changes:
        check_event_folder(incoming.folder, settings)
        emit_lab_arrived(incoming, open_workspace(settings).onboarding)
        console.print(f"Requested the onboarding of {incoming.lab} ({incoming.content}) by the Prefect server.")
        return
    state = onboard(folder.absolute(), tuple(changes or ()), return_state=True)
    if state.is_failed():
        state.result()  # raises the error of the run
    console.print(state.message)


if __name__ == "__main__":
    typer.run(command)
