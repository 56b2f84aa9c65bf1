"""Modules that commands import at their start."""

import subprocess
import sys

HEAVY = ("lightning_fabric", "mlflow", "numpy", "prefect", "skimage", "timm", "torch", "torch._dynamo")


def loaded(code: str) -> set[str]:
    """The heavy packages that a new process has imported after running some code."""
    output = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return set(output.split()) & set(HEAVY)


def test_settings_import_nothing_heavy() -> None:
    assert loaded("from microseg.config.settings import load_settings; load_settings()") == set()


def test_local_servers_import_nothing_heavy() -> None:
    assert loaded("import flows.service.local_servers") == set()


def test_drop_folder_imports_only_prefect() -> None:
    assert loaded("import flows.service.drop_folder") <= {"numpy", "prefect"}


def test_status_and_history_do_not_import_prefect() -> None:
    assert loaded("import flows.health.status, flows.health.history") <= {"mlflow", "numpy"}


def test_onboarding_records_do_not_import_scipy() -> None:
    code = "import sys, flows.workspace; print(sum(name.startswith('scipy') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "0\n"


def test_commands_of_the_registry_do_not_import_pytorch() -> None:
    # one process for all: MLflow and Prefect take seconds
    found = loaded(
        "import flows.service.webhook_receiver, flows.health.doctor, flows.health.history, flows.health.status\n"
        "import flows.promote, flows.rollback, flows.reconcile, flows.evaluate"
    )
    assert found <= {"mlflow", "numpy", "prefect"}
    assert "mlflow" in found


def test_segmentation_and_training_load_the_compiler_of_pytorch_only_when_they_need_it() -> None:
    """timm and Lightning Fabric import it, which takes as long as PyTorch itself."""
    assert loaded("import microseg.api.segmenter, microseg.api.training") <= {"numpy", "skimage", "torch"}
