"""One training in a separate process, which cannot read the held-out test sets, nor without need the source lab.

python -m benchmarks.adaptation.worker job.json
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.adaptation.guard import forbid
from benchmarks.adaptation.methods import ABLATIONS, METHODS, STATISTICS
from microseg.api.training import adapt, train
from microseg.config.settings import load_settings
from microseg.config.training_params import AdaptSettings
from microseg.datasets.dataset import LabDataset, open_lab_dataset
from microseg.models.files import load_network, save_network
from microseg.slides.images import read_image
from microseg.training.adaptation.domain_shift import to_batch
from microseg.training.adaptation.normalization import measure_statistics, write_statistics
from microseg.training.devices import make_fabric

__all__ = ["main"]

_log = logging.getLogger("microseg.benchmark")


def main(job: dict[str, Any]) -> None:
    """Run a job: ``train`` a source segmenter or an upper bound, or ``adapt`` by a method."""
    forbid(Path(job["task_folder"]))
    params = load_settings(job["changes"]).params
    folder, seed = Path(job["folder"]), int(job["seed"])
    source = Path(job["source"])
    fabric = make_fabric(params.device)
    start_time = time.monotonic()
    if job["kind"] == "train":
        settings = params.train
        if job["start"]:
            settings = settings.model_copy(update={"max_minutes": job["minutes"], "steps": job["steps"]})
        start = Path(job["start"]) if job["start"] else None
        train([source], params.network, settings, folder=folder, seed=seed, fabric=fabric, start=start)
    elif job["method"] == STATISTICS:
        network = load_network(Path(job["start"]))
        (target,) = _targets(job)
        batches = (to_batch(read_image(target.image_path(row)), fabric.device) for row in target.rows)
        write_statistics(network, measure_statistics(network.to(fabric.device), batches))
        save_network(folder, network.cpu())
    else:
        method = (METHODS | ABLATIONS)[job["method"]]
        values = params.adapt.model_dump() | {"steps": job["steps"], "max_minutes": job["minutes"]} | method.changes
        options = AdaptSettings(**values)
        if options.source == "none":
            forbid(source.parent, source.name)
        result = adapt(
            Path(job["start"]),
            [] if options.source == "none" else [source],
            _targets(job),
            options,
            folder=folder,
            seed=seed,
            fabric=fabric,
            method=method.kind,
        )
        _log.info("%d steps, the checkpoint after %d was selected", result.steps, result.best_step)
    (folder / "minutes.json").write_text(json.dumps((time.monotonic() - start_time) / 60))


def _targets(job: dict[str, Any]) -> list[LabDataset]:
    return [open_lab_dataset(Path(folder)) for folder in job["targets"]]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("microseg").setLevel(logging.INFO)
    main(json.loads(Path(sys.argv[1]).read_text()))
