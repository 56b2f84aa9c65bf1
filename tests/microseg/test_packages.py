"""What the packages offer is loaded when it is asked for."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import microseg

ROOT = Path(microseg.__file__).parent
PACKAGES = sorted(".".join(("microseg", *file.parent.relative_to(ROOT).parts)) for file in ROOT.rglob("__init__.py"))


@pytest.mark.parametrize("name", PACKAGES)
def test_all_that_is_named_is_there(name: str) -> None:
    package = import_module(name)
    assert package.__all__
    for offered in package.__all__:
        value = getattr(package, offered)
        assert value is not None
        assert not isinstance(value, ModuleType), f"{name}.{offered} is hidden by the module of its name"
    assert dir(package) == sorted(package.__all__)


def test_what_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = microseg.Segmentor  # type: ignore[attr-defined]
