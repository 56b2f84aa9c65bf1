"""Which tests run in the same process, and in which order, where pytest-xdist runs them in several.

What is expensive is shared: the tests of one file run in one process; so do those that use one Prefect server, those of
the registry, and those that open pages in a browser. The longest run first, so that no process is left alone with them
at the end.

The groups of pytest-xdist (``--dist loadgroup``) have no effect with pytest 9.2: each test is a group of its own.
"""

from typing import Any

from xdist.scheduler import LoadScopeScheduling

__all__ = ["GroupScheduling", "group_of", "rank"]

_FLOWS, _REGISTRY = "tests/flows/", "tests/microseg/registry/"
_OWN_SERVERS = tuple(
    _FLOWS + name
    for name in (
        "service/test_local_servers.py",
        "test_browser.py",
        "test_service.py",
        "test_start.py",
        "test_two_machines.py",
        "test_workers.py",
    )
)


def group_of(file: str) -> str:
    """Name of the tests that run in the same process as those of a file.

    Args:
        file: Path of the file in the checkout.
    """
    if file.startswith(_FLOWS) and file not in _OWN_SERVERS:
        return _FLOWS
    if file.endswith("_in_browser.py"):
        return "browser"
    return _REGISTRY if file.startswith(_REGISTRY) else file


def rank(file: str) -> int:
    """Place of a file in the order: flows, real servers, whole programs (the wheel, the plugins), the others."""
    if group_of(file) == _FLOWS:
        return 0
    if file in _OWN_SERVERS:
        return 1
    return 2 if file.count("/") == 1 else 3


class GroupScheduling(LoadScopeScheduling):
    """Gives each process one group after the other, in the order of the tests."""

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0])
