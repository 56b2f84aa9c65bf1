from pathlib import Path

from tests.distribution import _OWN_SERVERS, group_of, rank

ROOT = Path(__file__).parent.parent


def test_tests_with_servers_of_their_own_run_beside_those_that_share_one():
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests" / "flows").rglob("test_*.py")
        if "mark.server" in path.read_text(encoding="utf-8")
    }
    assert marked <= set(_OWN_SERVERS)
    assert all((ROOT / file).is_file() for file in _OWN_SERVERS)


def test_what_shares_a_fixture_runs_in_one_process_and_the_longest_first():
    flows, registry = "tests/flows/test_onboard.py", "tests/microseg/registry/test_versions.py"
    assert group_of(flows) == group_of("tests/flows/service/test_notifications.py") != group_of(_OWN_SERVERS[0])
    assert group_of(registry) == group_of("tests/microseg/registry/test_gate.py")
    assert group_of("tests/test_wheel.py") == "tests/test_wheel.py"
    files = [registry, "tests/test_wheel.py", _OWN_SERVERS[0], flows]
    assert sorted(files, key=rank) == files[::-1]
