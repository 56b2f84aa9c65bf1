"""Device, precision and processes of a training, through Lightning Fabric."""

import copy
import multiprocessing
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric

from microseg.errors import SettingsError

__all__ = ["Progress", "launch", "make_fabric", "resolve_device"]

Result = TypeVar("Result")
Callback = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Progress:
    """Callbacks of a training.

    Attributes:
        on_step: Called after each step with its number, from 1, and its losses.
        on_evaluation: Called after each evaluation with the number of the step and the metrics.
    """

    on_step: Callback = lambda _step, _losses: None
    on_evaluation: Callback = lambda _step, _metrics: None


def resolve_device(device: str) -> str:
    """Device that a setting means on this machine.

    Args:
        device: ``cpu``, ``cuda``, ``mps``, or ``auto`` for the fastest one available.

    Raises:
        SettingsError: The device is unknown or not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, present in available.items() if present)
    if device not in available:
        raise SettingsError(f"Expected device cpu, cuda, mps or auto, got {device!r}.")
    if not available[device]:
        raise SettingsError(f"Device {device} is not available to PyTorch on this machine: set device to auto or cpu.")
    return device


def make_fabric(device: str = "auto", *, devices: int = 1, nodes: int = 1, precision: str = "32-true") -> Fabric:
    """Lightning Fabric for these settings.

    Args:
        device: See `resolve_device`.
        devices: Processes or GPUs on each machine.
        nodes: Machines.
        precision: By Fabric's names, for example ``32-true`` or ``bf16-mixed``.

    Raises:
        SettingsError: The device is not available or the precision unknown.
    """
    accelerator = resolve_device(device)
    # on one machine this process starts the others; on several, torchrun starts each
    strategy = "ddp" if nodes > 1 else "ddp_spawn" if devices > 1 else "auto"
    try:
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise SettingsError(
            f"Lightning Fabric refuses device={device}, devices={devices}, precision={precision}: {error}"
        ) from error


def launch(fabric: Fabric, function: Callable[[Fabric, Progress], Result], progress: Progress) -> Result:
    """Run a function in this process, or in as many processes as Fabric was made for.

    Args:
        fabric: Device and processes.
        function: Function that each process runs; picklable where there are several.
        progress: Callbacks; where there are several processes, those of the first one are called here.

    Returns:
        Result of the function in the first process.
    """
    if fabric.strategy.launcher is None:
        fabric.launch()
        return function(fabric, progress)
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()
        receiver = threading.Thread(target=_receive, args=(queue, progress), daemon=True)
        receiver.start()
        try:
            sender = Progress(partial(_send, queue, "on_step"), partial(_send, queue, "on_evaluation"))
            first: Result = fabric.launch(partial(_in_process, function, sender)).result
            return first
        finally:
            queue.put(None)
            receiver.join()


def _in_process(function: Callable[[Fabric, Progress], Result], sender: Progress, fabric: Fabric) -> SimpleNamespace:
    function = copy.deepcopy(function)  # the tensors among its arguments are in memory that all processes share
    # Fabric searches a result for tensors, and cannot search frozen records; it does not search a namespace
    return SimpleNamespace(result=function(fabric, sender if fabric.is_global_zero else Progress()))


def _send(queue: Any, kind: str, step: int, metrics: Mapping[str, float]) -> None:
    queue.put((kind, step, dict(metrics)))


def _receive(queue: Any, progress: Progress) -> None:
    while (item := queue.get()) is not None:
        kind, step, metrics = item
        getattr(progress, kind)(step, metrics)
