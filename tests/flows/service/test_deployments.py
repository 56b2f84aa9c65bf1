"""prefect.yaml: the same deployments as `microseg serve`, for workers."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from flows.service.deployments import deployments
from microseg.config.settings import load_settings

ROOT = Path(__file__).parents[3]
DECLARED: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_declares_the_deployments_that_are_served(fresh: Path) -> None:
    """With the defaults of the parameters."""
    served = {it.entrypoint: it for it in deployments(load_settings())}
    assert {it["entrypoint"] for it in DECLARED} == set(served)
    for declared in DECLARED:
        it = served[declared["entrypoint"]]
        assert declared["name"] == it.name
        assert declared["tags"] == it.tags
        assert declared.get("concurrency_limit") == it.concurrency_limit
        triggers = [(trigger.name, sorted(trigger.expect), trigger.parameters) for trigger in it.triggers]
        assert [(t["name"], sorted(t["expect"]), t["parameters"]) for t in declared.get("triggers", [])] == triggers
        times = [schedule.schedule for schedule in it.schedules or []]
        for time, stated in zip(times, declared.get("schedules", []), strict=True):
            if "cron" in stated:
                assert (time.cron, time.timezone) == (stated["cron"], stated["timezone"])
            else:
                assert time.interval == timedelta(seconds=stated["interval"])
