"""microseg: one image segmenter, kept working across labs.

Every package of the library loads a module when something of it is first asked for: PyTorch and MLflow take seconds
and a gigabyte, and most processes need one of them or neither. What a package offers stands in its ``__init__.pyi``,
which type checkers read too; ``EAGER_IMPORT=1`` loads everything at once.
"""

from typing import Any

import lazy_loader

from microseg.cpu import set_passive_waiting

set_passive_waiting()

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'microseg' has no attribute {name!r}; it has {', '.join(__all__)}")
    return _load(name)
