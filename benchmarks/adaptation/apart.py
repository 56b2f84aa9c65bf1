"""Training in separate processes, which cannot read the held-out test sets; see `worker`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["train_apart"]


def train_apart(job: dict[str, Any], folder: Path) -> Path:
    """Train in a separate process; a finished training is not repeated.

    Args:
        job: Arguments of `worker`.
        folder: Folder that the network and ``minutes.json`` are written to.

    Returns:
        The folder.
    """
    if (folder / "minutes.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(folder.name + ".job.json")
    file.write_text(json.dumps(job | {"folder": str(folder)}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-m", "benchmarks.adaptation.worker", str(file)], check=True, env=environment)
    return folder
