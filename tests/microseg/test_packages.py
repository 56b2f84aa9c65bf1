"""What ``from microseg import ...`` offers is imported when it is asked for."""

import subprocess
import sys

import pytest

import microseg


def test_public_api() -> None:
    assert dir(microseg) == sorted(microseg.__all__) == ["Segmenter", "adapt", "train"]
    assert all(callable(getattr(microseg, name)) for name in microseg.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = microseg.Segmentor  # type: ignore[attr-defined]


def test_importing_microseg_does_not_import_pytorch() -> None:
    code = "import sys, microseg; print(sorted({'torch', 'mlflow', 'dvc', 'prefect'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
