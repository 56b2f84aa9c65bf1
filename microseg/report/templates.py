"""Templates of the pages, in this folder."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, Template, select_autoescape

__all__ = ["load_template"]


@lru_cache(maxsize=16)
def load_template(name: str, **filters: Callable[..., Any]) -> Template:
    """Load a template, once for the same filters; what it shows is escaped.

    Args:
        name: File name.
        filters: Filters beside those of Jinja, by name.
    """
    environment = Environment(
        loader=PackageLoader("microseg.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    environment.filters |= filters
    return environment.get_template(name)
