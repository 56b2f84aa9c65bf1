"""A trained network becomes a version of the model, with its model card, datasets and reference distribution."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.workspace import Workspace
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import CropSampler, Sample
from microseg.evaluation.label_free import fit_reference_distribution
from microseg.models.files import load_network
from microseg.registry.model_card import TrainedModel, model_card
from microseg.registry.registration import code_commit
from microseg.registry.runs import RunLog
from microseg.registry.version import ModelVersion
from microseg.training.loop import TrainingResult

__all__ = ["register_model"]

_SERVED_TILE = 256  # pixels; `mlflow models serve` takes tiles of this size


def register_model(
    workspace: Workspace,
    run: RunLog,
    folder: Path,
    training: TrainingResult,
    *,
    source: Sequence[LabDataset],
    target: Sequence[LabDataset] = (),
    digests: Mapping[str, str],
    method: str,
    base: ModelVersion | None = None,
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register a trained network with its model card, datasets and reference distribution.

    Args:
        workspace: The workspace, which keeps the network.
        run: Run of the training.
        folder: Folder of the trained network.
        training: Course of the training.
        source: Labelled labs.
        target: Unlabelled labs.
        digests: Version of each lab's dataset.
        method: Name of the training method.
        base: Version that it was adapted from, where the datasets of that one were not read.
        tags: Further tags of the version.
    """
    remote = workspace.settings.environment.dvc_remote
    for role, labs in (("source", source), ("target", target)):
        for lab in labs:
            run.log_dataset(lab.metadata.lab, digests[lab.metadata.lab], remote, role)
    read = {lab.metadata.lab for lab in (*source, *target)}
    for lab_name in sorted(digests.keys() - read):
        run.log_dataset(lab_name, digests[lab_name], remote, "base")
    commit = code_commit(Path(__file__).parent)
    run.log_metrics({"seconds": training.seconds, "steps": training.steps, "best_step": training.best_step})
    run.set_tag("stopped", training.stopped)
    network = workspace.keep_network(run.id, load_network(folder))
    config = network.config
    reference = fit_reference_distribution([*source, *target], config.mpp)
    earlier = None if base is None else workspace.registry.versions.reference_distribution(base)
    run.log_reference_distribution(reference if earlier is None else earlier.updated(reference))
    params = workspace.registry.runs.params(run.id)
    card = model_card(TrainedModel(method, config, source, digests, params, target, run.id, commit))
    lab = (*source, *target)[0]
    first = Sample(lab.image(lab.rows[0]))
    tile = CropSampler([first], size=_SERVED_TILE, batch=1, seed=0).draw(0).images[0]  # (3, T, T)
    example = (tile.permute(1, 2, 0) * 255).round().byte().numpy()
    return workspace.registry.versions.register(
        run,
        folder,
        network=network,
        example=example,
        method=method,
        description=card,
        commit=commit,
        tags=tags,
    )
