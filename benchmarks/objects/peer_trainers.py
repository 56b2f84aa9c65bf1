"""Training of StarDist, Cellpose or InstanSeg from random weights, run by an interpreter that has them.

    python peer_trainers.py JOB

JOB is a JSON file that `benchmarks.objects.peers` writes. Each program is used as its documentation does, but for what
the functions here state. Training ends when this process has used the CPU time of the job, on one thread.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]
Pairs = list[tuple[Array, Array]]  # images (H, W) or (H, W, 3), and the numbers of their objects (H, W)


class TimeUsedUpError(Exception):
    """Ends a training from within."""


def train_stardist(train: Pairs, held_out: Pairs, seconds: float, folder: Path) -> tuple[Callable[[Array], Array], int]:
    """Network, patches, loss and augmentation of StarDist's example notebook; thresholds chosen on the held-out images.

    A callback ends the training after the step in which the time is used up.
    """
    from csbdeep.utils import normalize  # type: ignore[import-not-found]
    from stardist.models import Config2D, StarDist2D  # type: ignore[import-not-found]
    from tensorflow.keras.callbacks import LambdaCallback  # type: ignore[import-untyped]

    def augment(image: Array, labels: Array) -> tuple[Array, Array]:
        turns, mirrored = np.random.randint(4), np.random.rand() < 0.5
        image, labels = (np.rot90(it, turns)[:: -1 if mirrored else 1] for it in (image, labels))
        image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
        return image + 0.02 * np.random.uniform() * np.random.normal(size=image.shape), labels

    prepare = partial(normalize, pmin=1, pmax=99.8, axis=(0, 1))
    config = Config2D(n_channel_in=1 if train[0][0].ndim == 2 else 3, grid=(2, 2), train_tensorboard=False)
    model, ended, steps = StarDist2D(config, name="stardist", basedir=str(folder)), time.process_time() + seconds, [0]
    model.prepare_for_training()

    def after_step(_batch: int, **_logs: object) -> None:
        steps[0] += 1
        model.keras_model.stop_training = time.process_time() > ended

    model.callbacks.append(LambdaCallback(on_train_batch_end=after_step))
    known = [prepare(image) for image, _ in held_out], [labels for _, labels in held_out]
    model.train(
        [prepare(image) for image, _ in train], [it for _, it in train], validation_data=known, augmenter=augment
    )
    model.optimize_thresholds(*known)
    return lambda image: np.asarray(model.predict_instances(prepare(image))[0]), steps[0]


def train_cellpose(
    train: Pairs, _held_out: Pairs, seconds: float, folder: Path
) -> tuple[Callable[[Array], Array], int]:
    """The network of Cellpose 3 with the diameter of its model of nuclei, on gray values or on the three colors.

    A batch has two crops in place of eight, and an epoch one batch in place of all images, since the learning rate
    rises over ten epochs. Objects are found at the mean diameter of the training images. Training ends before the step
    at which the time is used up.
    """
    from cellpose.dynamics import labels_to_flows  # type: ignore[import-not-found]
    from cellpose.models import CellposeModel  # type: ignore[import-not-found]
    from cellpose.train import train_seg  # type: ignore[import-not-found]

    ended, steps, gray = time.process_time() + seconds, 0, train[0][0].ndim == 2
    model = CellposeModel(pretrained_model=None, diam_mean=17.0, nchan=2 if gray else 3)
    set_mode = model.net.train

    def before_step(mode: bool = True) -> Any:
        nonlocal steps
        if mode and time.process_time() >= ended:
            raise TimeUsedUpError
        steps += mode
        return set_mode(mode)

    channels = {"channels": [0, 0]} if gray else {"channel_axis": 0}
    with mock.patch.object(model.net, "train", before_step), suppress(TimeUsedUpError):
        flows = labels_to_flows([labels for _, labels in train], device=model.device)
        train_seg(model.net, [_channels_first(image) for image, _ in train], flows, batch_size=2, nimg_per_epoch=2,
                  save_path=folder, **channels)  # fmt: skip
    model.net.eval()
    find = partial(model.eval, diameter=model.net.diam_labels.item(), bsize=512, **channels)  # one tile: half the time
    return lambda image: np.asarray(find(_channels_first(image))[0]), steps


def train_instanseg(
    train: Pairs, held_out: Pairs, seconds: float, folder: Path
) -> tuple[Callable[[Array], Array], int]:
    """Network, losses and augmentation of InstanSeg's script, which ends its last epoch when the time is used up.

    All epochs are those of its first stage, which by default are ten of 1,000 crops; here one has 30 crops, and the
    network with the best F1 on the held-out images is kept, as there.
    """
    import torch
    from instanseg import InstanSeg  # type: ignore[import-not-found]
    from instanseg.scripts.train import instanseg_training  # type: ignore[import-not-found]
    from instanseg.utils import AI_utils  # type: ignore[import-not-found]
    from instanseg.utils.loss.instanseg_loss import InstanSeg_Torchscript  # type: ignore[import-not-found]
    from instanseg.utils.model_loader import load_model  # type: ignore[import-not-found]

    ended, steps, sys.argv = time.process_time() + seconds, 0, sys.argv[:1]
    train_epoch, loader = AI_utils.train_epoch, partial(torch.utils.data.DataLoader)

    def until_the_end(batches: Iterable[Any]) -> Iterator[Any]:
        nonlocal steps
        for batch in batches:
            if time.process_time() < ended:
                steps += 1
                yield batch

    def epoch(model: Any, device: Any, batches: Iterable[Any], *rest: Any, **named: Any) -> Any:
        if time.process_time() >= ended:
            raise TimeUsedUpError
        return train_epoch(model, device, until_the_end(batches), *rest, **named)

    def in_this_process(*rest: Any, **named: Any) -> Any:
        return loader(*rest, **named | {"num_workers": 0, "persistent_workers": False})

    kind = "Fluorescence" if train[0][0].ndim == 2 else "Brightfield"
    data = {
        name: [{"image": np.dstack([image] * 3) if image.ndim == 2 else image, "nucleus_masks": labels,
                "parent_dataset": "source", "image_modality": kind} for image, labels in pairs]
        for name, pairs in {"Train": train, "Validation": held_out}.items()
    }  # fmt: skip
    with (
        mock.patch.object(AI_utils, "train_epoch", epoch),
        mock.patch.object(AI_utils, "show_images"),
        mock.patch("torch.utils.data.DataLoader", in_this_process),
        suppress(TimeUsedUpError),
    ):
        instanseg_training(data, output_path=folder, experiment_str="instanseg", source_dataset="[source]",
                           length_of_epoch=30, hotstart_training=10_000, device="cpu", on_cluster=True)  # fmt: skip
    network, stated = load_model("instanseg", path=str(folder))
    scripted = torch.jit.script(InstanSeg_Torchscript(network, n_sigma=stated["n_sigma"]))
    found = InstanSeg(scripted, device="cpu", verbosity=0)

    def segment(image: Array) -> Array:
        colors = np.stack([image] * 3) if image.ndim == 2 else _channels_first(image)
        return np.asarray(found.eval_small_image(torch.tensor(colors).float(), return_image_tensor=False)[0, 0])

    return segment, steps


TRAINERS = {"stardist": train_stardist, "cellpose": train_cellpose, "instanseg": train_instanseg}
PACKAGES = {"stardist": "stardist", "cellpose": "cellpose", "instanseg": "instanseg-torch"}


def main() -> None:
    """Train, and write the objects of the test images of a job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    train, held_out = ([(_gray(image), _read(labels)) for image, labels in job[part]] for part in ("train", "held_out"))
    random.seed(job["seed"])
    np.random.seed(job["seed"])
    started = time.process_time()
    segment, steps = TRAINERS[job["program"]](train, held_out, job["seconds"], folder)
    used = time.process_time() - started
    for image, labels in job["source"] + job["target"]:
        Image.fromarray(segment(_gray(image)).astype(np.uint16)).save(labels)
    report = {"version": version(PACKAGES[job["program"]]), "minutes": used / 60, "steps": steps}
    (folder / "report.json").write_text(json.dumps(report))


def _channels_first(image: Array) -> Array:
    return image if image.ndim == 2 else image.transpose(2, 0, 1)


def _read(path: str) -> Array:
    return np.asarray(Image.open(path)).astype(np.int32)


def _gray(path: str) -> Array:
    image = np.asarray(Image.open(path))
    return image[..., 0] if (image == image[..., :1]).all() else image


if __name__ == "__main__":
    main()
