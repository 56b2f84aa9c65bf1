"""What a process loads before it does anything."""

import subprocess
import sys

HEAVY = ("mlflow", "numpy", "prefect", "skimage", "timm", "torch")


def loaded(code: str) -> set[str]:
    """Which of the heavy packages a new process has loaded after some code."""
    said = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return set(said.split()) & set(HEAVY)


def test_settings_load_nothing_heavy() -> None:
    assert loaded("from microseg.config.settings import load_settings; load_settings()") == set()


def test_starting_servers_loads_nothing_heavy() -> None:
    assert loaded("import flows.service.local_servers") == set()


def test_what_watches_the_incoming_folder_loads_prefect_alone() -> None:
    assert loaded("import flows.service.drop_folder") <= {"numpy", "prefect"}


def test_what_only_looks_at_the_registry_loads_no_pytorch() -> None:
    # one process for all: MLflow and Prefect take seconds
    found = loaded(
        "import flows.service.webhook_receiver, flows.health.doctor, flows.health.history, flows.health.status"
    )
    assert found <= {"mlflow", "numpy", "prefect"}
    assert "mlflow" in found
