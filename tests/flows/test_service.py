"""The service on real servers: a lab arrives, a version is promoted in MLflow, an invalid one is reverted."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from microseg.datasets.onboarding import OnboardingStore
from microseg.datasets.versions.store import DatasetStore
from microseg.registry.registry import Registry
from microseg.registry.version import MODEL_NAME, PRODUCTION
from microseg.synthetic.labs import LAB_B, generate_lab
from tests.flows.live import DEPLOYMENTS, Servers, connected, ended, environment_of_service, runs_of, started, until

pytestmark = [pytest.mark.server, pytest.mark.long]

ONBOARDING = {"quiet_period": 3, "adapt_when_suited": True}
SCHEDULE = {"segment_cron": "30 4 * * *", "reconcile_minutes": 1000}  # so that only events can have done it


@pytest.fixture(scope="module")
def servers(
    params: Path, incoming_labs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """With lab_a ingested, and version 1, trained on it, in production."""
    data = {"allowed_roots": [str(tmp_path_factory.getbasetemp())]}
    with started(tmp_path_factory.mktemp("service"), params, onboarding=ONBOARDING, schedule=SCHEDULE, data=data) as it:
        until(lambda: "Ctrl-C" in it.output.read_text() or it.process.poll() is not None, "the servers' addresses")
        assert it.process.poll() is None, it.output.read_text()
        with connected(it) as client:
            until(lambda: len(client.read_deployments()) == DEPLOYMENTS, "the deployments")
            for flow, parameters in (("ingest", {"folder": str(incoming_labs[0])}), ("train", {"labs": ["lab_a"]})):
                deployment = client.read_deployment_by_name(f"{flow}/{flow}")
                run = ended(client, client.create_flow_run_from_deployment(deployment.id, parameters=parameters))
                assert run.state.is_completed(), run.state.message
        yield it


@pytest.fixture
def client(servers: Servers) -> Iterator[SyncPrefectClient]:
    with connected(servers) as client:
        yield client


@pytest.fixture
def registry(servers: Servers) -> Registry:
    return Registry(servers.mlflow)


def next_run(client: SyncPrefectClient, flow: str, before: int) -> FlowRun:
    until(lambda: len(runs_of(client, flow)) > before, f"a run of {flow}")
    return ended(client, runs_of(client, flow)[before])


def set_alias(servers: Servers, version: int) -> None:
    """Set the alias as MLflow's page does."""
    client = mlflow.MlflowClient(tracking_uri=servers.mlflow, registry_uri=servers.mlflow)
    client.set_registered_model_alias(MODEL_NAME, PRODUCTION, str(version))


def test_files_that_arrive_slowly_start_one_onboarding(
    servers: Servers, client: SyncPrefectClient, registry: Registry, incoming_labs: tuple[Path, Path]
) -> None:
    incoming = servers.home / "incoming" / "lab_b"
    (incoming / "images").mkdir(parents=True)
    for image in sorted((incoming_labs[1] / "images").iterdir()):
        shutil.copy(image, incoming / "images")
        time.sleep(1)
    assert not runs_of(client, "onboard")
    time.sleep(5)
    assert not runs_of(client, "onboard")  # quiet, but without lab.yaml
    for name in ("images.csv", "lab.yaml"):
        shutil.copy(incoming_labs[1] / name, incoming)
    run = next_run(client, "onboard", 0)
    assert run.state.is_completed(), run.state.message
    assert run.state.message.startswith("Version 2 is the candidate for lab_b.")
    assert registry.versions.find("candidate").datasets.keys() == {"lab_a", "lab_b"}
    time.sleep(8)
    assert len(runs_of(client, "onboard")) == 1
    assert OnboardingStore(servers.home / "records" / "onboarding").read("lab_b").state == "completed"


def test_further_images_become_a_new_version_and_a_new_candidate(
    servers: Servers, client: SyncPrefectClient, registry: Registry, tmp_path: Path
) -> None:
    more = generate_lab(tmp_path / "lab_b", LAB_B, images=9, size=64, labelled=False, seed=1)  # those 6, and 3 more
    shutil.copytree(more, servers.home / "incoming" / "lab_b", dirs_exist_ok=True)
    run = next_run(client, "onboard", 1)
    assert run.state.is_completed(), run.state.message
    store = DatasetStore(servers.home / "data", str(servers.home / "dvc-remote"))
    assert len(store.history("lab_b")) == 2
    assert registry.versions.find("candidate").version == 3
    assert registry.versions.find(3).datasets["lab_b"] == store.history("lab_b")[-1].digest


def test_the_same_event_again_changes_nothing(servers: Servers, client: SyncPrefectClient) -> None:
    """Posted over HTTP, as the software of a scanner can do."""
    event = {
        "id": "5a7e9a2c-0d3c-4a53-9f2d-2a8a54d8b6f1",
        "occurred": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "event": "microseg.lab.arrived",
        "resource": {"prefect.resource.id": "microseg.lab.lab_b"},
        "payload": {"folder": str(servers.home / "incoming" / "lab_b")},
    }
    request = urllib.request.Request(
        f"{servers.prefect}/api/events",
        data=json.dumps([event]).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 204
    run = next_run(client, "onboard", 2)
    assert run.state.is_completed()
    assert run.state.message.startswith("Nothing to do: this dataset of lab_b is onboarded already.")


def test_an_alias_set_in_mlflow_promotes(servers: Servers, client: SyncPrefectClient, registry: Registry) -> None:
    set_alias(servers, 3)
    run = next_run(client, "validate-promotion", 0)
    assert run.state.is_completed(), run.state.message
    assert "Version 3 is in production" in run.state.message
    assert registry.versions.find("previous").version == 1
    entry = registry.production.history()[0]
    assert (entry.previous_version, entry.version, entry.audit.via) == (1, 3, "mlflow")


def test_an_invalid_version_is_reverted(servers: Servers, client: SyncPrefectClient, registry: Registry) -> None:
    mlflow_client = mlflow.MlflowClient(tracking_uri=servers.mlflow, registry_uri=servers.mlflow)
    before = len(runs_of(client, "validate-promotion"))
    foreign_run = mlflow_client.create_run("0")
    source = f"{foreign_run.info.artifact_uri}/model"
    created = mlflow_client.create_model_version(MODEL_NAME, source=source, run_id=foreign_run.info.run_id)
    set_alias(servers, int(created.version))
    until(
        lambda: any(run.state.is_failed() for run in runs_of(client, "validate-promotion")[before:]),
        "a failed run",
    )
    run = next(run for run in runs_of(client, "validate-promotion")[before:] if run.state.is_failed())
    assert f"Version {created.version} was reverted, version 3 stays in production" in run.state.message
    assert registry.versions.find(PRODUCTION).version == 3
    assert registry.versions.find(int(created.version)).description.startswith("NOT IN PRODUCTION: ")
    assert registry.production.history()[0].action == "reverted"


def test_reconcile_finds_a_changed_stage(servers: Servers, client: SyncPrefectClient, registry: Registry) -> None:
    """MLflow sends no webhook for a legacy stage."""
    mlflow_client = mlflow.MlflowClient(tracking_uri=servers.mlflow, registry_uri=servers.mlflow)
    if not hasattr(mlflow_client, "transition_model_version_stage"):
        pytest.skip("this MLflow has no stages any more")
    with pytest.warns(FutureWarning, match="deprecated"):
        mlflow_client.transition_model_version_stage(MODEL_NAME, "1", "Production")
    deployment = client.read_deployment_by_name("reconcile/reconcile")
    run = ended(client, client.create_flow_run_from_deployment(deployment.id))
    assert run.state.is_completed(), run.state.message
    assert "Version 1 is in production" in run.state.message
    assert (registry.versions.find(PRODUCTION).version, registry.versions.find("previous").version) == (1, 3)
    assert registry.production.history()[0].audit.via == "stage"


def test_a_person_approves_in_prefect(
    servers: Servers, client: SyncPrefectClient, registry: Registry, tmp_path: Path
) -> None:
    """The run is suspended without blocking others, and goes on after the decision."""
    folder = generate_lab(tmp_path / "lab_d", replace(LAB_B, name="lab_d"), images=4, size=64, labelled=False, seed=5)
    deployment = client.read_deployment_by_name("onboard/onboard")
    parameters = {"folder": str(folder), "changes": ["promotion.approval=prefect", "promotion.per_lab=true"]}
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
    until(lambda: client.read_flow_run(run.id).state_name in ("Suspended", "Failed", "Crashed"), "the question")
    assert client.read_flow_run(run.id).state_name == "Suspended"
    candidate = registry.versions.find("candidate")
    assert candidate.tags["target"] == "lab_d"
    assert OnboardingStore(servers.home / "records" / "onboarding").read("lab_d").state == "awaiting_approval"
    answer = {"promote": True, "by": "ann", "reason": "the outlines are right"}
    resumed = client.resume_flow_run(run.id, run_input=answer)
    assert resumed.status.value == "ACCEPT", resumed
    run = ended(client, run)
    assert run.state.is_completed(), run.state.message
    assert f"Version {candidate.version} is in production: approved by ann." in run.state.message
    assert registry.production.active("lab_d").version == candidate.version
    entry = registry.production.history("production-lab_d")[0]
    assert (entry.version, entry.audit.by, entry.audit.via) == (candidate.version, "ann", "prefect")
    assert len([it for it in registry.versions.all() if it.tags.get("target") == "lab_d"]) == 1  # adapted to once


def test_doctor_and_status_of_these_servers(servers: Servers, client: SyncPrefectClient) -> None:
    environment = environment_of_service()
    environment |= {"PREFECT_API_URL": f"{servers.prefect}/api", "MLFLOW_TRACKING_URI": servers.mlflow}
    environment |= {"MICROSEG_HOME": str(servers.home), "PREFECT_HOME": str(servers.home / "doctor")}
    environment |= {"MICROSEG_PARAMS": str(servers.home.parent / "params.yaml")}
    for name, words in (
        ("doctor", ("a signed test webhook to", "the next batch is at", "incoming labs and promotions start runs")),
        ("status", ("Next batch: ", "lab_a", "Production: version")),
    ):
        command = [sys.executable, "-m", f"flows.health.{name}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(word in done.stdout for word in words), done.stdout
