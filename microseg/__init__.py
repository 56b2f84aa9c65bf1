"""microseg: one image segmenter, kept working across labs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from microseg.cpu import wait_asleep

if TYPE_CHECKING:
    from microseg.sdk import Segmenter, adapt

__all__ = ["Segmenter", "adapt"]

wait_asleep()


def __getattr__(name: str) -> Any:
    """Load the SDK when it is first asked for: PyTorch and MLflow take seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'microseg' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module("microseg.sdk"), name)
