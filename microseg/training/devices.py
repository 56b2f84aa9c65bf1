"""Device, precision and processes of a training, through Lightning Fabric.

Fabric is imported when a training starts: it takes seconds.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from microseg.errors import SettingsError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "Progress",
    "fastest_convolutions",
    "launch",
    "make_fabric",
    "random_states",
    "resolve_device",
    "resolve_precision",
    "restore_random_states",
    "several_programs",
    "tf32",
]

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


def resolve_precision(precision: str, accelerator: str) -> str:
    """Precision that a setting means on a device, by Fabric's names.

    Args:
        precision: ``auto`` for ``bf16-mixed`` on a CUDA device that computes it, and ``32-true`` elsewhere; or any of
            Fabric's names.
        accelerator: The device, from `resolve_device`.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if accelerator == "cuda" and torch.cuda.get_device_capability()[0] >= _AMPERE else "32-true"


def make_fabric(
    device: str = "auto",
    *,
    devices: int = 1,
    nodes: int = 1,
    precision: str = "auto",
    timeout_minutes: float = 120.0,
) -> Fabric:
    """Lightning Fabric for these settings.

    Args:
        device: See `resolve_device`.
        devices: Processes or GPUs on each machine.
        nodes: Machines. Each runs the same program, a call of `train`, started by ``torchrun``, or with
            ``MASTER_ADDR``, ``MASTER_PORT`` and its own ``NODE_RANK`` in the environment.
        precision: See `resolve_precision`.
        timeout_minutes: Minutes that a process waits for another one, for example for an evaluation, which one
            process does for all.

    Raises:
        SettingsError: The device is not available, the precision unknown, or the other machines are not known.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    accelerator = resolve_device(device)
    external = _started_by_torchrun()
    if nodes > 1 and not external and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise SettingsError(
            f"Expected nodes={nodes} to be started by torchrun, or with MASTER_ADDR, MASTER_PORT and NODE_RANK in the "
            "environment of each, found none of these: start them so, or set nodes to 1."
        )
    strategy: Any = "auto"
    if devices > 1 or nodes > 1:  # this process starts the others of its machine, unless torchrun did
        strategy = DDPStrategy(
            start_method="popen" if external else "spawn", timeout=timedelta(minutes=timeout_minutes)
        )
    try:
        return Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=resolve_precision(precision, accelerator),  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise SettingsError(
            f"Lightning Fabric refuses device={device}, devices={devices}, precision={precision}: {error}"
        ) from error


_AMPERE = 8  # compute capability, from which GPUs have bfloat16 and TF32


def _started_by_torchrun() -> bool:
    return torch.distributed.is_available() and bool(torch.distributed.is_torchelastic_launched())


def several_programs(fabric: Fabric) -> bool:
    """Whether programs that this one did not start take part: on other machines, or started by ``torchrun``."""
    from lightning_fabric.strategies.ddp import DDPStrategy

    strategy = fabric.strategy
    return isinstance(strategy, DDPStrategy) and (strategy.num_nodes > 1 or _started_by_torchrun())


def launch(fabric: Fabric, function: Callable[[Fabric, Progress], Result], progress: Progress) -> Result:
    """Run a function in this process, or in as many processes as Fabric was made for.

    Args:
        fabric: Device and processes.
        function: Function that each process runs; picklable where there are several.
        progress: Callbacks; where there are several processes, those of the first one are called here.

    Returns:
        Result of the function in the first process.
    """
    if fabric.strategy.launcher is None or _started_by_torchrun():
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


@contextmanager
def fastest_convolutions(enabled: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms for each new shape and keep the fastest: more than half a minute on an H100.

    Not for evaluations, where each image may have another shape.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = enabled or before
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Compute float32 matrix products in TF32, which has more digits than the bfloat16 of the others."""
    before = torch.get_float32_matmul_precision()
    if enabled:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if enabled:
            torch.set_float32_matmul_precision(before)


def random_states(fabric: Fabric) -> list[torch.Tensor]:
    """States of the random generators of the CPU and, on CUDA, of the GPU, of all processes.

    Shape:
        each (processes, bytes)
    """
    own = [torch.get_rng_state()]
    if fabric.device.type == "cuda":
        own.append(torch.cuda.get_rng_state(fabric.device))
    if fabric.world_size == 1:
        return [state[None] for state in own]
    gathered = [fabric.all_gather(state) for state in own]
    return [state.cpu() for state in gathered if isinstance(state, torch.Tensor)]


def restore_random_states(fabric: Fabric, states: Sequence[torch.Tensor]) -> None:
    """Set the random generators of this process as `random_states` returned them, perhaps of fewer processes."""
    setters = [torch.set_rng_state]
    if fabric.device.type == "cuda":
        setters.append(partial(torch.cuda.set_rng_state, device=fabric.device))
    for set_state, state in zip(setters, states, strict=False):
        if fabric.global_rank < len(state):
            set_state(state[fabric.global_rank])
