"""Modules that commands import at their start."""

import subprocess
import sys

HEAVY = ("lightning_fabric", "mlflow", "numpy", "prefect", "scipy", "skimage", "timm", "torch", "torch._dynamo")


def loaded(*steps: str) -> list[set[str]]:
    """The heavy packages that a new process has imported after each of some steps."""
    code = "import sys\n" + "".join(f"{step}\nprint(*sys.modules)\n" for step in steps)
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return [set(line.split()) & set(HEAVY) for line in output.splitlines()]


def test_service_imports_only_prefect() -> None:
    settings, servers, drop_folder = loaded(
        "from microseg.config.settings import load_settings; load_settings()",
        "import flows.service.local_servers",
        "import flows.service.drop_folder",
    )
    assert settings == servers == set()
    assert drop_folder <= {"numpy", "prefect"}


def test_commands_of_the_registry_do_not_import_pytorch() -> None:
    """Those that only read do not import Prefect, and the records of onboardings do not import SciPy."""
    records, reading, all_of_them = loaded(
        "import flows.workspace",
        "import flows.health.status, flows.health.history",
        "import flows.service.webhook_receiver, flows.health.doctor, flows.promote, flows.rollback, flows.reconcile, "
        "flows.evaluate",
    )
    assert records <= {"mlflow", "numpy"}
    assert reading <= {"mlflow", "numpy"}
    assert all_of_them <= {"mlflow", "numpy", "prefect", "scipy"}
    assert "mlflow" in all_of_them


def test_segmentation_and_training_load_the_compiler_of_pytorch_only_when_they_need_it() -> None:
    """timm and Lightning Fabric import it, which takes as long as PyTorch itself; and no CPU backend, as elsewhere."""
    [found] = loaded(
        "sys.modules['microseg.inference.backends.cpu'] = None  # importing it raises ImportError\n"
        "import microseg.api.segmenter, microseg.api.training"
    )
    assert found <= {"numpy", "scipy", "skimage", "torch"}
