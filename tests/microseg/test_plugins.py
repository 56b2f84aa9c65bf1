"""What happens when a plugin is unknown, broken or not registered."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from microseg import plugins
from microseg.errors import PluginError


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points of the group ``microseg.heads``, in place of the installed ones."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(points).select(group=group))
    plugins._entry_points.cache_clear()
    yield points
    plugins._entry_points.cache_clear()


def test_loads_what_is_registered(registered: list[EntryPoint]) -> None:
    registered.append(EntryPoint("path", "pathlib:Path", "microseg.heads"))
    assert plugins.plugin_names("microseg.heads") == ("path",)
    assert plugins.load_plugin("microseg.heads", "path").__name__ == "Path"


def test_names_what_is_registered_when_a_name_is_unknown(registered: list[EntryPoint]) -> None:
    registered.append(EntryPoint("path", "pathlib:Path", "microseg.heads"))
    with pytest.raises(PluginError, match=r"name of a prediction head \(path\), got 'other'"):
        plugins.load_plugin("microseg.heads", "other")


def test_reports_a_package_that_cannot_be_imported(registered: list[EntryPoint]) -> None:
    registered.append(EntryPoint("broken", "no_such_module:Head", "microseg.heads"))
    with pytest.raises(PluginError, match=r"'broken' \(no_such_module:Head\) cannot be imported: ModuleNotFoundError"):
        plugins.load_plugin("microseg.heads", "broken")


def test_reports_an_installation_without_entry_points(registered: list[EntryPoint]) -> None:
    with pytest.raises(PluginError, match="installation is older than the code"):
        plugins.plugin_names("microseg.heads")
