"""Extension points: a package adds a slide reader, an annotation format or another part under an entry-point group.

A package declares what it adds in its ``pyproject.toml``, under a name::

    [project.entry-points."microseg.encoders"]
    my_encoder = "my_package:MyEncoder"

The built-in ones are declared in the same way. Nothing is imported before it is used.
"""

import logging
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from microseg.errors import PluginError

__all__ = ["GROUPS", "create_plugins", "load_plugin", "plugin_names"]

_log = logging.getLogger(__name__)

GROUPS = {
    "microseg.slide_readers": "whole-slide reader",
    "microseg.annotations": "annotation format",
    "microseg.encoders": "encoder",
    "microseg.heads": "prediction head",
    "microseg.adaptation_methods": "adaptation method",
    "microseg.output_writers": "output writer",
}


def plugin_names(group: str) -> tuple[str, ...]:
    """Names that are registered under a group, sorted; see `GROUPS`.

    Raises:
        PluginError: Not even microseg's own are registered.
    """
    return tuple(sorted(_entry_points(group)))


def load_plugin(group: str, name: str) -> Any:
    """Import what is registered under a name.

    Args:
        group: One of `GROUPS`.
        name: Name of the entry point.

    Raises:
        PluginError: Nothing has that name, its package cannot be imported, or the installation of microseg is outdated.
    """
    found = _entry_points(group)
    if name not in found:
        raise PluginError(
            f"Expected the name of a {GROUPS[group]} ({', '.join(sorted(found))}), got {name!r}. Correct it, or "
            f"install the package that provides it (entry-point group {group})."
        )
    try:
        return found[name].load()
    except Exception as error:  # a package of others: anything may happen while it is imported
        raise PluginError(
            f"The {GROUPS[group]} {name!r} ({found[name].value}) cannot be imported: {type(error).__name__}: {error}. "
            "Update or uninstall its package."
        ) from error


@cache
def create_plugins(group: str, *attributes: str) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Create one instance, without arguments, of each class that is registered under a group.

    A class that cannot be used is reported as a warning, so that it does not prevent the use of others.

    Args:
        group: One of `GROUPS`.
        attributes: Attributes that an instance must have.

    Returns:
        The instances by name, and by name the reasons why others are not available.
    """
    instances: dict[str, Any] = {}
    broken: dict[str, str] = {}
    for name in plugin_names(group):
        try:
            instance = load_plugin(group, name)()
            if missing := [attribute for attribute in attributes if not hasattr(instance, attribute)]:
                raise AttributeError(f"it has no {', '.join(missing)}")
            instances[name] = instance
        except PluginError as error:
            broken[name] = str(error)
        except Exception as error:  # a class of another package may raise anything
            broken[name] = f"The {GROUPS[group]} {name!r} cannot be used: {type(error).__name__}: {error}."
    for message in broken.values():
        _log.warning("%s The others are used without it.", message)
    return instances, broken


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    found = {point.name: point for point in entry_points(group=group)}
    if not found:
        raise PluginError(
            f"Expected microseg's own entry points of the group {group}, found none: the installation is older than "
            "the code. Install microseg again, in a checkout with `pip install --editable .`."
        )
    return found
