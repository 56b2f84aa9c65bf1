"""Networks and datasets by the names under which the registry knows them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.settings import Settings
from flows.stores import dataset_store, open_registry
from microseg.data.dataset import Lab, open_lab
from microseg.data.sampling import CropSampler, Sample
from microseg.errors import VersioningError
from microseg.evaluation import Comparison, learn_known
from microseg.inference import Engine
from microseg.model import PyramidSegmenter, load_network
from microseg.registry import (
    CardLab,
    Decision,
    GatePolicy,
    ModelVersion,
    Registry,
    RunLog,
    gate_tags,
    model_card,
)
from microseg.sdk import Fitted, Segmenter, version_provenance
from microseg.training import resolve_device
from microseg.versioning import code_commit

__all__ = [
    "ADAPTED_METHOD",
    "SOURCE_METHOD",
    "describe",
    "fetch_lab",
    "fetch_labs",
    "fetch_network",
    "fetch_segmenter",
    "make_engine",
    "policy_for",
    "publish",
]

SOURCE_METHOD = "supervised"
ADAPTED_METHOD = "dual_adaptive_pyramid"

_SERVED_TILE = 256  # pixels; the form for `mlflow models serve` takes tiles of this size


def policy_for(lab: str | None, settings: Settings) -> GatePolicy:
    """What the gate asks: a version for one lab's images alone takes nothing from the other labs."""
    policy = settings.params.gate
    return policy if lab is None else policy.model_copy(update={"max_source_loss": 1.0})


def fetch_network(version: ModelVersion, settings: Settings) -> PyramidSegmenter:
    """A version's network, from the registry."""
    return load_network(open_registry(settings).download(version, settings.home.models))


def fetch_segmenter(version: ModelVersion, settings: Settings) -> Segmenter:
    """A version, made ready to segment."""
    inference = settings.params.inference
    return Segmenter(
        fetch_network(version, settings),
        provenance=version_provenance(version),
        known=open_registry(settings).known_images(version),
        device=settings.params.device,
        tile=inference.tile,
        halo=inference.halo,
        batch=inference.batch,
        compiled=inference.compile,
    )


def make_engine(network: PyramidSegmenter, settings: Settings) -> Engine:
    """A network, made ready to segment."""
    inference = settings.params.inference
    device = resolve_device(settings.params.device)
    return Engine(
        network,
        device=device,
        tile=inference.tile,
        halo=inference.halo,
        batch=inference.batch,
        compiled=inference.compile,
    )


def fetch_lab(lab: str, digest: str | None, settings: Settings) -> tuple[Lab, str]:
    """A lab's dataset at a version, and the version.

    Args:
        lab: the lab's name.
        digest: of the version; None for the last one ingested.
        settings: where datasets are.

    Raises:
        VersioningError: when there is none.
    """
    store = dataset_store(settings)
    if digest is None:
        current = store.current(lab)
        if current is None:
            raise VersioningError(
                f"Expected a dataset of lab {lab!r}, found none: run `microseg ingest <its folder>` first."
            )
        digest = current.digest
    return open_lab(store.checkout(lab, digest)), digest


def fetch_labs(digests: Mapping[str, str], settings: Settings) -> tuple[list[Lab], list[Lab]]:
    """The labs that a model version was trained with, at those versions: the labelled ones, and the others."""
    labs = [fetch_lab(lab, digest, settings)[0] for lab, digest in sorted(digests.items())]
    labelled = [lab for lab in labs if lab.select(split="train", labelled=True)]
    return labelled, [lab for lab in labs if lab not in labelled]


def publish(
    registry: Registry,
    run: RunLog,
    fitted: Fitted,
    *,
    source: Sequence[Lab],
    target: Sequence[Lab] = (),
    digests: Mapping[str, str],
    method: str,
    settings: Settings,
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Log the datasets of a training and register its network, with its model card and what it knows of images.

    Args:
        registry: where to.
        run: of the training.
        fitted: the network.
        source: labelled labs.
        target: labs adapted to.
        digests: dataset version of each lab.
        method: name of the training method.
        settings: of this run.
        tags: further tags of the version.
    """
    for role, labs in (("source", source), ("target", target)):
        for lab in labs:
            run.log_dataset(lab.card.lab, digests[lab.card.lab], settings.environment.dvc_remote, role)
    commit = code_commit(Path(__file__).parent)
    run.log_metrics(
        {"seconds": fitted.result.seconds, "steps": fitted.result.steps, "best_step": fitted.result.best_step}
    )
    run.set_tag("stopped", fitted.result.stopped)
    network = load_network(fitted.folder).config
    run.log_known_images(learn_known([*source, *target], network.mpp))
    card = model_card(
        method=method,
        classes=network.classes,
        mpp=network.mpp,
        labs=_card_labs(source, target, digests),
        params=_training_params(method, settings),
        run_id=run.id,
        commit=commit,
    )
    first = Sample(source[0].image_path(source[0].rows[0]))
    tile = CropSampler([first], size=_SERVED_TILE, batch=1, seed=0).draw(0).images[0]  # (3, T, T)
    example = (tile.permute(1, 2, 0) * 255).round().byte().numpy()
    return registry.register(
        run, fitted.folder, example=example, method=method, description=card, commit=commit, tags=tags
    )


def describe(
    registry: Registry,
    version: ModelVersion,
    comparison: Comparison,
    decision: Decision | None,
    production: ModelVersion | None,
    settings: Settings,
) -> None:
    """Renew a version's model card with what is known of it now, and keep the gate's verdict with it.

    Args:
        registry: where the version is.
        version: judged.
        comparison: the evidence.
        decision: the gate's; None when it was not asked yet.
        production: the version beside it.
        settings: of this run.
    """
    network = fetch_network(version, settings).config
    source, target = fetch_labs(version.datasets, settings)
    method = version.tags.get("method", "unknown")
    card = model_card(
        method=method,
        classes=network.classes,
        mpp=network.mpp,
        labs=_card_labs(source, target, version.datasets),
        params=_training_params(method, settings),
        candidate=comparison.candidate,
        production=comparison.production,
        decision=decision,
        production_version=production.version if production else None,
        pictures=registry.attached(version, "evaluation", ".jpg"),
        run_id=version.run_id,
        commit=version.tags.get("commit"),
    )
    registry.describe(version, card)
    if decision is not None:
        registry.set_tags(version, gate_tags(decision, production))


def _training_params(method: str, settings: Settings) -> dict[str, Any]:
    section = settings.params.train if method == SOURCE_METHOD else settings.params.adapt
    return {"encoder": settings.params.network.encoder, "seed": settings.params.seed, **section.model_dump(mode="json")}


def _card_labs(source: Sequence[Lab], target: Sequence[Lab], digests: Mapping[str, str]) -> list[CardLab]:
    return [
        CardLab(
            lab.card.lab, role, digests[lab.card.lab], lab.card.stain, len(lab.rows), len(lab.select(labelled=True))
        )
        for role, labs in (("source", source), ("target", target))
        for lab in labs
    ]
