import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning_fabric import Fabric

import microseg
from microseg.api import training
from microseg.api.checkpoints import source_dice
from microseg.api.training import adapt, train
from microseg.config.settings import load_settings
from microseg.config.training_params import AdaptSettings, ArchitectureSettings, TrainSettings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.lab_channels import parse_channels
from microseg.datasets.sampling import CropSampler, Sample
from microseg.errors import DataError, LabError, PluginError
from microseg.models.files import load_network, weights_digest
from microseg.plugins import load_plugin
from microseg.training.adaptation.source_free import SourceFreeMethod
from microseg.training.devices import Progress
from microseg.training.loop import TrainingResult
from microseg.training.method import Supervised
from tests.microseg.api.conftest import SHORT, TINY


def test_train_and_adapt(
    fit: Callable[..., TrainingResult],
    fit_to_target: Callable[..., TrainingResult],
    labs: tuple[LabDataset, LabDataset],
    incoming_labs: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From datasets to a network on disk, twice; no sampler ever gets a file of the held-out test set."""
    sampled: list[Sample] = []
    original = CropSampler.__init__

    def spy(self: CropSampler, samples: list[Sample], **values: Any) -> None:
        sampled.extend(samples)
        original(self, samples, **values)

    monkeypatch.setattr(CropSampler, "__init__", spy)
    reports: list[tuple[str, int, Mapping[str, float]]] = []
    progress = Progress(lambda *it: reports.append(("step", *it)), lambda *it: reports.append(("evaluation", *it)))

    fit(progress=progress)
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == ["network.json", "weights.safetensors"]
    network = load_network(tmp_path / "first")
    assert (network.config.classes, network.config.mpp) == (("background", "gland"), 1.0)
    assert [(kind, step) for kind, step, _ in reports] == [
        ("step", 1), ("step", 2), ("evaluation", 2), ("step", 3), ("evaluation", 3)
    ]  # fmt: skip
    assert reports[2][2].keys() == {"source_dice", "score"}
    train_images = {labs[0].image_path(row) for row in labs[0].select(split="train")}
    assert {sample.image for sample in sampled} == train_images
    assert {sample.mask for sample in sampled} == {labs[0].mask_path(row) for row in labs[0].select(split="train")}

    sampled.clear()
    reports.clear()
    fit_to_target(tmp_path / "first", progress=progress)
    adapted = load_network(tmp_path / "adapted")
    assert adapted.config == network.config
    assert weights_digest(adapted) != weights_digest(network)
    assert weights_digest(load_network(tmp_path / "first")) == weights_digest(network)
    assert reports[0][2].keys() >= {"total", "segmentation", "domain_image", "domain_feature", "pseudo_labels"}
    assert reports[2][2].keys() == {
        "source_dice", "target_stain_explained_variance", "target_entropy", "target_foreground_share", "score"
    }  # fmt: skip
    lost = source_dice(network, labs[:1]) - reports[2][2]["source_dice"]
    assert reports[2][2]["score"] == pytest.approx(min(0.0, -lost))
    windows = {sample for sample in sampled if sample.image not in train_images}
    assert {sample.image.parent for sample in windows} == {tmp_path / "adapted.work" / "windows" / "lab_b"}
    given = {sample.mask.parents[1].name for sample in windows if sample.mask}
    assert given == {"round-0", "round-1", "round-2"}  # all masks are pseudo-labels
    assert not (tmp_path / "adapted.work").exists()

    for lab, incoming in zip(labs, incoming_labs, strict=True):
        assert (incoming / "test" / "masks").is_dir()
        paths = [path for sample in sampled for path in (sample.image, sample.mask) if path is not None]
        assert not any(incoming in path.parents for path in paths)
        held_out = {file.read_bytes() for file in (incoming / "test").rglob("*.png")}
        assert not any(path.read_bytes() in held_out for path in paths if path.exists())
        assert len(held_out) == 4
        assert lab.folder not in incoming.parents
    assert not list(tmp_path.glob("*.checkpoint"))


def test_warns_of_few_steps(
    fit_to_target: Callable[..., TrainingResult], tiny_network: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    fit_to_target(tiny_network(), steps=1)
    assert "Expected at least 60 steps of adaptation, got 1" in caplog.text


def test_initial_network_is_not_changed(
    fit_to_target: Callable[..., TrainingResult], tiny_network: Callable[..., Any]
) -> None:
    base = tiny_network().eval()
    before = weights_digest(base)
    fit_to_target(base, steps=1)
    assert weights_digest(base) == before
    assert not base.training
    assert all(parameter.grad is None for parameter in base.parameters())


def test_corrections_of_the_target_lab_change_the_network(
    fit_to_target: Callable[..., TrainingResult],
    tiny_network: Callable[..., Any],
    source_lab: LabDataset,
    tmp_path: Path,
) -> None:
    digests = []
    for name, share in (("with", 0.5), ("without", 0.0)):
        fit_to_target(tiny_network(), folder=name, target=[source_lab], steps=2, target_label_share=share)
        digests.append(weights_digest(load_network(tmp_path / name)))
    assert digests[0] != digests[1]


def test_one_seed_gives_one_network(fit: Callable[..., TrainingResult], tmp_path: Path) -> None:
    torch.manual_seed(99)
    for folder in ("one", "other"):
        fit(folder, steps=1)
    assert ((tmp_path / "one") / "weights.safetensors").read_bytes() == (
        (tmp_path / "other") / "weights.safetensors"
    ).read_bytes()


def test_rejects_other_classes(
    fit_to_target: Callable[..., TrainingResult],
    tiny_network: Callable[..., Any],
    source_lab: LabDataset,
    tmp_path: Path,
) -> None:
    metadata = source_lab.metadata.model_copy(update={"lab": "lab_c", "classes": ("background", "tumour")})
    other = dataclasses.replace(source_lab, metadata=metadata)
    with pytest.raises(
        LabError, match=r"lab lab_a to have the classes \['background', 'tumour'\], got .*correct lab\.yaml"
    ):
        train([other, source_lab], TINY, folder=tmp_path / "n")
    with pytest.raises(LabError, match="lab lab_a to have the classes"):
        fit_to_target(tiny_network(classes=("background", "tumour")))


def test_labels_are_required(
    fit_to_target: Callable[..., TrainingResult],
    tiny_network: Callable[..., Any],
    target_lab: LabDataset,
    tmp_path: Path,
) -> None:
    with pytest.raises(LabError, match=r"Expected labelled images to train on, found none in the labs given \(lab_b\)"):
        train([target_lab], TINY, folder=tmp_path / "n")
    with pytest.raises(LabError, match="Expected labelled images"):
        fit_to_target(tiny_network(), source=[target_lab])
    with pytest.raises(LabError, match="Expected at least one labelled lab"):
        train([], TINY, folder=tmp_path / "n")


def test_target_images_are_required(tiny_network: Callable[..., Any], source_lab: LabDataset, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="Expected images of a target lab to adapt to, found none"):
        adapt(tiny_network(), [source_lab], [], AdaptSettings(**SHORT), folder=tmp_path / "n")


class Bystander(SourceFreeMethod):
    """Records what it is given; trains nothing but a little on target crops."""

    given: ClassVar[list[Any]] = []

    def __init__(self, network: Any, source: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(network, source, *arguments, **options)
        self.given.append(source)

    def forward(self, batch: Any, progress: float) -> dict[str, torch.Tensor]:
        return {"total": self.network(batch.images).square().mean()}


def test_adaptation_without_source_images(
    tiny_network: Callable[..., Any], labs: tuple[LabDataset, LabDataset], fabric: Fabric, tmp_path: Path
) -> None:
    """The method gets no source image, and the last network is kept: there is no score to choose one by."""
    settings = AdaptSettings(source="none", **SHORT)
    done = adapt(tiny_network(), [], labs[1:], settings, folder=tmp_path / "n", fabric=fabric, method=Bystander)
    assert Bystander.given == [[]]
    assert done.best_step == done.steps == 3
    assert "score" not in done.evaluations[2]
    assert load_network(tmp_path / "n").config == tiny_network().config


def test_source_setting_must_fit(
    tiny_network: Callable[..., Any], labs: tuple[LabDataset, LabDataset], tmp_path: Path
) -> None:
    run = partial(adapt, tiny_network(), folder=tmp_path / "n")
    with pytest.raises(LabError, match=r"adapt without them, set adapt\.source=none"):
        run([], labs[1:])
    with pytest.raises(LabError, match=r"Expected no source lab with adapt\.source: none, got lab_a"):
        run(labs[:1], labs[1:], AdaptSettings(source="none"), method=Bystander)
    with pytest.raises(LabError, match=r"needs no source images.*got DualAdaptivePyramid"):
        run([], labs[1:], AdaptSettings(source="none"), method="dual_adaptive_pyramid")


def test_last_network_is_kept_without_validation_images(fabric: Fabric, source_lab: LabDataset, tmp_path: Path) -> None:
    lab = dataclasses.replace(source_lab, rows=source_lab.select(split="train"))
    fitted = train([lab], TINY, TrainSettings(**SHORT), folder=tmp_path / "n", fabric=fabric)
    assert (fitted.best_step, fitted.evaluations) == (3, {})


class Idle(Supervised):
    """Supervised training on the source labs, in the form of an adaptation method."""

    def __init__(self, network: Any, source: Any, targets: Any, settings: AdaptSettings, **options: Any) -> None:
        sampler = CropSampler(source, size=options["crop"], batch=options["batch"], seed=options["seed"])
        super().__init__(network, sampler, settings)


def test_adaptation_method_is_a_name_or_a_class(
    tiny_network: Callable[..., Any], labs: tuple[LabDataset, LabDataset], fabric: Fabric, tmp_path: Path
) -> None:
    """Datasets are given as objects or as folders."""
    folders = [str(lab.folder) for lab in labs]
    settings = AdaptSettings(**SHORT | {"steps": 1})
    reports: list[Mapping[str, float]] = []
    progress = Progress(on_step=lambda _step, losses: reports.append(losses))
    for method in ("dual_adaptive_pyramid", Idle):
        arguments: dict[str, Any] = {"folder": tmp_path / "n", "fabric": fabric, "progress": progress}
        adapt(tiny_network(), folders[:1], folders[1:], settings, method=method, **arguments)
    assert reports[0].keys() > reports[1].keys() == {"total", "segmentation"}
    with pytest.raises(PluginError, match=r"adaptation method \(.*dual_adaptive_pyramid.*\), got 'cyclegan'"):
        adapt(tiny_network(), labs[:1], labs[1:], AdaptSettings(method="cyclegan"), folder=tmp_path / "n")


def test_defaults_are_those_of_the_command_line_and_of_params_yaml(
    tiny_network: Callable[..., Any],
    labs: tuple[LabDataset, LabDataset],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """`microseg train` and `microseg adapt` pass the sections of the loaded parameters to the same functions."""
    runs: list[Any] = []
    weights: list[Any] = []
    monkeypatch.setattr(training, "launch", lambda _fabric, run, _progress: runs.append(run.keywords["method"]))
    monkeypatch.setattr(training, "load_encoder_weights", lambda _network, *source: weights.append(source))
    microseg.train(labs[:1], folder=tmp_path / "n")
    microseg.adapt(tiny_network(), labs[:1], labs[1:], folder=tmp_path / "m")
    monkeypatch.setenv("MICROSEG_PARAMS", str(Path(__file__).parents[3] / "params.yaml"))
    params = load_settings().params
    assert [run.settings for run in runs] == [params.train, params.adapt]
    assert isinstance(runs[1], load_plugin("microseg.adaptation_methods", params.adapt.method))
    config = runs[0].network.config
    assert {name: getattr(config, name) for name in ArchitectureSettings.model_fields} == params.network.model_dump(
        include=set(ArchitectureSettings.model_fields)
    )
    assert weights == [(params.network.weights, params.network.weights_license)]


def test_labs_of_other_channels_are_refused(
    fit_to_target: Callable[..., TrainingResult],
    labs: tuple[LabDataset, LabDataset],
    fabric: Fabric,
    tmp_path: Path,
) -> None:
    source, target = (
        dataclasses.replace(lab, metadata=lab.metadata.model_copy(update={"channels": parse_channels(channels)}))
        for lab, channels in zip(labs, (["nuclei", "membrane"], {"nuclei": "DAPI", "membrane": 3}), strict=True)
    )
    train([source], TINY, TrainSettings(**SHORT), folder=tmp_path / "two", fabric=fabric)
    assert load_network(tmp_path / "two").config.inputs == ("nuclei", "membrane")
    fit_to_target(tmp_path / "two", source=[source], target=[target])
    assert load_network(tmp_path / "adapted").config.inputs == ("nuclei", "membrane")
    with pytest.raises(DataError, match=f"Expected lab {labs[1].metadata.lab} to have the channels that the network"):
        fit_to_target(tmp_path / "two", "other", source=[source], target=labs[1:])
    with pytest.raises(DataError, match="got gray or RGB"):
        train([source, labs[1]], TINY, TrainSettings(**SHORT), folder=tmp_path / "both", fabric=fabric)
