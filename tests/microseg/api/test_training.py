import dataclasses
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

import microseg
from microseg.api import training, training_files
from microseg.api.checkpoints import source_dice
from microseg.api.samples import crop_size, image_samples, labelled_samples, with_corrections
from microseg.api.training import adapt, train
from microseg.config.params import AdaptSettings, ArchitectureSettings, NetworkSettings, TrainSettings
from microseg.config.settings import load_settings
from microseg.datasets.dataset import LabDataset
from microseg.datasets.sampling import CropSampler, Sample
from microseg.errors import LabError, PluginError
from microseg.models.config import NetworkConfig
from microseg.models.files import load_network, save_network, weights_digest
from microseg.models.network import PyramidSegmenter
from microseg.plugins import load_plugin
from microseg.slides.images import write_png
from microseg.training.adaptation.source_free import SourceFreeMethod
from microseg.training.devices import Progress, make_fabric
from microseg.training.loop import TrainingResult
from microseg.training.method import Supervised

SHORT = {
    "steps": 3,
    "batch_size": 2,
    "crop_size": 32,
    "warmup_steps": 1,
    "evaluate_every": 2,
    "checkpoint_every": 1,
    "ema_decay": 0.9,
}
TINY = NetworkSettings(encoder="blocks", channels=(4, 8), pyramid_bins=(1, 2), pyramid_channels=4, weights=None)


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return make_fabric("cpu")


@pytest.fixture
def fit(labs: tuple[LabDataset, LabDataset], fabric: Fabric, tmp_path: Path) -> Callable[..., TrainingResult]:
    def make(folder: str = "first", **values: Any) -> TrainingResult:
        progress, keep = values.pop("progress", None), values.pop("keep_checkpoint", False)
        return train(
            labs[:1],
            TINY,
            TrainSettings(**SHORT | values),
            folder=tmp_path / folder,
            fabric=fabric,
            progress=progress,
            keep_checkpoint=keep,
        )

    return make


@pytest.fixture
def fit_to_target(labs: tuple[LabDataset, LabDataset], fabric: Fabric, tmp_path: Path) -> Callable[..., TrainingResult]:
    def make(base: PyramidSegmenter | Path, folder: str = "adapted", **values: Any) -> TrainingResult:
        progress, source, target = (values.pop(name, None) for name in ("progress", "source", "target"))
        return adapt(
            base,
            source or labs[:1],
            target or labs[1:],
            AdaptSettings(**SHORT | values),
            folder=tmp_path / folder,
            fabric=fabric,
            progress=progress,
        )

    return make


def stop_at(step: int) -> Progress:
    def on_step(done: int, _losses: Mapping[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return Progress(on_step=on_step)


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f"{folder.name}.*.checkpoint"))


def first_step(make: Callable[..., TrainingResult], *arguments: Any, **values: Any) -> int:
    """Number of the first step of a training that is then interrupted."""
    steps: list[int] = []

    def stop(step: int, _losses: Mapping[str, float]) -> None:
        steps.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(*arguments, progress=Progress(on_step=stop), **values)
    return steps[0]


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


@pytest.mark.parametrize("kind", ["train", "adapt"])
def test_interrupted_run_is_resumed(
    kind: str,
    fit: Callable[..., TrainingResult],
    fit_to_target: Callable[..., TrainingResult],
    tiny_network: Callable[..., Any],
    tmp_path: Path,
) -> None:
    save_network(tmp_path / "base", tiny_network())

    def make(folder: str, **values: Any) -> TrainingResult:
        return fit(folder, **values) if kind == "train" else fit_to_target(tmp_path / "base", folder, **values)

    whole = make("whole")
    with pytest.raises(KeyboardInterrupt):
        make("parts", progress=stop_at(2))
    assert len(checkpoints(tmp_path / "parts")) == 1
    assert not (tmp_path / "parts").exists()
    steps: list[int] = []
    parts = make("parts", progress=Progress(on_step=lambda step, _losses: steps.append(step)))
    assert steps == [2, 3]
    assert not checkpoints(tmp_path / "parts")
    assert ((tmp_path / "parts") / "weights.safetensors").read_bytes() == (
        (tmp_path / "whole") / "weights.safetensors"
    ).read_bytes()
    assert parts.evaluations == whole.evaluations


def test_checkpoint_remains_until_the_network_is_written(
    fit: Callable[..., TrainingResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(folder: Path, network: PyramidSegmenter) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training_files, "save_network", full)
        with pytest.raises(OSError, match="No space"):
            fit()
    assert len(checkpoints(tmp_path / "first")) == 1
    steps: list[int] = []
    fit(progress=Progress(on_step=lambda step, _losses: steps.append(step)))
    assert steps == []


def test_checkpoint_is_kept_on_request(fit: Callable[..., TrainingResult], tmp_path: Path) -> None:
    """A caller that registers the network removes it after that."""
    first = fit(keep_checkpoint=True)
    steps: list[int] = []
    assert fit(keep_checkpoint=True, progress=Progress(on_step=lambda step, _losses: steps.append(step))) == first
    assert steps == []
    assert len(checkpoints(tmp_path / "first")) == 1


def test_checkpoint_of_another_initial_network_is_not_resumed(
    fit_to_target: Callable[..., TrainingResult], tiny_network: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_to_target(tiny_network(0), progress=stop_at(2))
    assert first_step(fit_to_target, tiny_network(1)) == 1
    assert "of an unfinished training with other settings or data was removed" in caplog.text


def test_checkpoint_of_other_settings_or_masks_is_not_resumed(
    fit_to_target: Callable[..., TrainingResult], tiny_network: Callable[..., Any], source_lab: LabDataset
) -> None:
    """Later images of a lab must not fail because of an adaptation that was interrupted before."""
    rows = tuple(dataclasses.replace(row, mask=None) if row.split == "val" else row for row in source_lab.rows)
    for changed in (
        {"learning_rate": 0.5},
        {"source": [dataclasses.replace(source_lab, rows=rows)]},
    ):
        with pytest.raises(KeyboardInterrupt):
            fit_to_target(tiny_network(0), progress=stop_at(2))
        assert first_step(fit_to_target, tiny_network(0), **changed) == 1


def test_network_stays_as_it_is_where_the_time_limit_allows_few_steps(
    fit_to_target: Callable[..., TrainingResult],
    tiny_network: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = tiny_network()
    result = fit_to_target(base, steps=1000, max_minutes=1e-5)
    assert (result.stopped, result.best_step, result.steps) == ("minutes", 0, 1)
    assert weights_digest(load_network(tmp_path / "adapted")) == weights_digest(base)
    assert "Expected time for at least 60 steps" in caplog.text
    assert "adapt.max_minutes" in caplog.text


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


def test_labelled_regions_of_the_target_lab_are_trained_on(source_lab: LabDataset, tmp_path: Path) -> None:
    folder = tmp_path / "lab_c"
    shutil.copytree(source_lab.folder, folder)
    target = dataclasses.replace(source_lab, folder=folder)
    train = target.select(split="train")
    for number, row in enumerate(target.rows):
        mask = np.full((row.height, row.width), 255, np.uint8)
        mask[10:20, 30:50] = number % 2
        write_png(target.mask_path(row), mask)
    source = [Sample(tmp_path / f"{number}.png", tmp_path / "m.png") for number in range(60)]
    config = NetworkConfig(classes=target.metadata.classes)
    samples = with_corrections(source, [target], config, 0.25)
    assert samples[:60] == source
    corrected = samples[60:]
    assert len(corrected) == 20  # a quarter of all
    assert {it.image for it in corrected} == {target.image_path(row) for row in train}
    assert {it.focus for it in corrected} == {(30, 10, 50, 20)}
    assert with_corrections(source, [target], config, 0.0) == source
    unlabelled = dataclasses.replace(target, rows=tuple(dataclasses.replace(row, mask=None) for row in target.rows))
    assert with_corrections(source, [unlabelled], config, 0.25) == source


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


@pytest.mark.parametrize(
    ("side", "mpp", "crop", "batch", "expected"),
    [
        (600, 1.0, 256, 4, (256, 4)),  # larger images than crops
        (128, 1.0, 256, 4, (128, 16)),  # crops of the images' size, four times as many
        (100, 1.0, 256, 4, (128, 16)),  # rounded up to 32
        (64, 1.0, 256, 4, (64, 16)),  # not more than four times as many
        (256, 0.5, 256, 4, (128, 16)),  # 128 pixels at the model's scale
        (256, None, 256, 2, (256, 2)),  # scale unknown
    ],
)
def test_crop_size_follows_image_size(
    source_lab: LabDataset, side: int, mpp: float | None, crop: int, batch: int, expected: tuple[int, int]
) -> None:
    rows = tuple(dataclasses.replace(row, width=2 * side, height=side, mpp=mpp) for row in source_lab.rows)
    lab = dataclasses.replace(source_lab, rows=rows)
    assert crop_size([lab], TrainSettings(crop_size=crop, batch_size=batch), 1.0) == expected


def test_images_are_resized_to_the_models_scale(source_lab: LabDataset) -> None:
    rows = (
        dataclasses.replace(source_lab.rows[0], mpp=0.25, split="train"),
        dataclasses.replace(source_lab.rows[1], mpp=None, split="train"),
    )
    lab = dataclasses.replace(source_lab, rows=rows)
    config = NetworkConfig(classes=lab.metadata.classes, mpp=0.5)
    assert [it.zoom for it in labelled_samples([lab], config)] == [0.5, 1.0]
    assert [it.zoom for it in image_samples(lab, None)] == [1.0, 1.0]


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
