"""A lab lands → its dataset, a candidate adapted to it, and what there is to decide.

    python -m flows.onboard incoming/lab_c

What runs when the event `microseg.lab.arrived` comes: ingest, adapt, evaluate. Then a person decides in MLflow's page,
or in Prefect's, or the gate decides alone, as ``promotion.approval`` in params.yaml says. Running it twice for the same
delivery does nothing twice.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from flows.adapt import adapt
from flows.cli.console import console
from flows.cli.options import SetOption, cli_command
from flows.evaluate import evaluate, read_comparison
from flows.ingest import ingest
from flows.service.approval import request_approval
from flows.service.events import emit_lab_arrived
from flows.workspace import open_workspace
from microseg.config.settings import Settings, load_settings
from microseg.datasets.onboarding import IncomingDataset, Onboarding, OnboardingStore, read_incoming_folder
from microseg.errors import LabError, MicrosegError
from microseg.registry.registry import Registry
from microseg.registry.version import ModelVersion

__all__ = ["command", "onboard"]


@flow(name="onboard", flow_run_name="{folder} lands")
def onboard(folder: Path, changes: tuple[str, ...] = ()) -> State[Any]:
    """Take a lab's delivery over, adapt the production model to it, judge the result.

    Args:
        folder: of the delivery.
        changes: parameters that replace those of params.yaml, ``section.name=value``.

    Returns:
        Completed; the message says what there is to decide, or why there was nothing to do.

    Raises:
        LabError: the delivery cannot be used.
    """
    settings = load_settings(changes)
    delivery = read_incoming_folder(folder)
    if delivery.lacks:
        raise LabError(f"{delivery.folder}: expected a whole delivery, but {delivery.lacks}.")
    kept = open_workspace(settings).onboarding
    with kept.claimed(delivery.lab, wait=False) as mine:
        if mine:
            return _once(delivery, kept, settings, changes)
    if (running := kept.read(delivery.lab)) and running.fingerprint == delivery.fingerprint:
        return Completed(message=f"Nothing to do: this delivery of {delivery.lab} is being adapted to already.")
    with kept.claimed(delivery.lab, wait=True):  # a further delivery: after the one before
        return _once(delivery, kept, settings, changes)


def _once(delivery: IncomingDataset, kept: OnboardingStore, settings: Settings, changes: tuple[str, ...]) -> State[Any]:
    landing = kept.read(delivery.lab)
    if landing is None or landing.fingerprint != delivery.fingerprint:
        landing = Onboarding(delivery.lab, str(delivery.folder), delivery.fingerprint, "announced")
    if landing.state == "done":
        return Completed(message=f"Nothing to do: this delivery of {delivery.lab} was taken over. {landing.message}")
    this = str(flow_run.id)
    if landing.state == "waiting" and landing.run != this:
        return Completed(message=f"Nothing to do: {landing.message}")
    landing = kept.write(landing, state="running", attempts=landing.attempts + 1, run=this)
    try:
        return _take_over(delivery, landing, kept, settings, changes)
    except MicrosegError as error:
        kept.write(landing, state="failed", message=str(error))
        raise


def _take_over(
    delivery: IncomingDataset, landing: Onboarding, kept: OnboardingStore, settings: Settings, changes: tuple[str, ...]
) -> State[Any]:
    ingested = ingest(delivery.folder, changes=changes)
    lab, registry = ingested.lab, open_workspace(settings).registry
    landing = kept.write(landing, digest=ingested.digest)
    base = open_workspace(settings).production()
    if base is None:
        message = f"{lab} has its dataset, but nothing is in production to adapt: microseg train a first version."
        message = f"{message} {ingested.refusals}".rstrip()
        kept.write(landing, state="held", message=message)
        return Completed(message=message)
    if base.datasets.get(lab) == ingested.digest:
        message = f"Version {base.version}, in production, was made with this very dataset of {lab}."
        message = f"{message} {ingested.refusals}".rstrip()
        kept.write(landing, state="done", message=message)
        return Completed(message=message)
    candidate = _adapted_before(registry, landing, base)
    if candidate is None:
        adapted = adapt(lab, base=str(base.version), digest=ingested.digest, changes=changes)
        candidate = registry.versions.find(adapted.version)
    landing = kept.write(landing, version=candidate.version)
    rival = open_workspace(settings).production(lab)
    if read_comparison(candidate, rival, settings) is None:
        against = {"against": str(rival.version)} if rival else {}
        evaluate(str(candidate.version), lab=lab, changes=changes, **against)
    kept.write(landing, state="waiting", message=f"Version {candidate.version} waits for a decision.")
    message = (
        f"{request_approval(registry.versions.find(candidate), lab, settings, changes)} {ingested.refusals}".rstrip()
    )
    kept.write(landing, state="done", message=message)
    return Completed(message=message)


def _adapted_before(registry: Registry, landing: Onboarding, base: ModelVersion) -> ModelVersion | None:
    """The candidate that an earlier run for the same dataset has made, where it was interrupted later."""
    for version in registry.versions.all():
        made_for = (version.tags.get("target"), version.datasets.get(landing.lab))
        same_base = version.tags.get("base_version") == str(base.version) or version.version == landing.version
        if made_for == (landing.lab, landing.digest) and same_base:
            return version
    return None


@cli_command(home="create")
def command(
    folder: Annotated[Path, typer.Argument(help="The delivery: images/, lab.yaml, masks/ where labelled.")],
    here: Annotated[
        bool, typer.Option("--here", help="Run it in this process, even if there is a Prefect server to tell.")
    ] = False,
    changes: SetOption = None,
) -> None:
    """Say that a lab has landed: it is ingested, the production model is adapted to it, the candidate judged.

    With a Prefect server (PREFECT_API_URL) this sends the same event as the watch on incoming/, and the deployment
    does the work; without one the work is done here. Example: microseg onboard incoming/lab_c
    """
    delivery = read_incoming_folder(folder)
    if delivery.lacks:
        raise LabError(f"{delivery.folder}: expected a whole delivery, but {delivery.lacks}.")
    if PREFECT_API_URL.value() and not here and not changes:
        emit_lab_arrived(delivery, open_workspace(load_settings()).onboarding)
        console.print(
            f"Told Prefect that {delivery.lab} has landed ({delivery.content}); its deployment land does the rest."
        )
        return
    state = onboard(folder.absolute(), tuple(changes or ()), return_state=True)
    if state.is_failed():
        state.result()  # raises what it failed of
    console.print(state.message)


if __name__ == "__main__":
    typer.run(command)
