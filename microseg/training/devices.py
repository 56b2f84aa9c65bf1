"""Where training runs: processor, precision and processes, through Lightning Fabric."""

import torch
from lightning_fabric import Fabric

from microseg.errors import SettingsError

__all__ = ["make_fabric", "resolve_device"]


def resolve_device(device: str) -> str:
    """The device that a setting means on this machine.

    Args:
        device: ``cpu``, ``cuda``, ``mps``, or ``auto`` for the best there is.

    Raises:
        SettingsError: when it is unknown, or not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if device not in present:
        raise SettingsError(f"Expected device cpu, cuda, mps or auto, got {device!r}.")
    if not present[device]:
        raise SettingsError(f"Device {device} was asked for, but PyTorch finds none here: set device to auto or cpu.")
    return device


def make_fabric(device: str = "auto", *, devices: int = 1, nodes: int = 1, precision: str = "32-true") -> Fabric:
    """Lightning Fabric for these settings.

    Args:
        device: see `resolve_device`.
        devices: processes or GPUs on each machine.
        nodes: machines.
        precision: Fabric's names, for example ``32-true`` or ``bf16-mixed``.

    Raises:
        SettingsError: when the device is not there or the precision unknown.
    """
    accelerator = resolve_device(device)
    # on one machine the processes are started from here; on several each is started by torchrun
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
