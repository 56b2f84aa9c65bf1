"""`microseg serve` with two flows that need no PyTorch, so that it starts in seconds.

    python -m tests.flows.service.small_service [runner]

`quick` is like `reconcile`: a schedule, one run at a time. `slow` is like `onboard`: each run appends a line to a file
when it begins and when it ends.
"""

import logging
import sys
import time
from datetime import timedelta

from prefect import flow
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.types.entrypoint import EntrypointType

from flows.service import serve
from flows.service.runner import run
from flows.service.supervisor import Part
from microseg.config.settings import load_settings


@flow(name="quick")
def quick(seconds: float = 0.5) -> str:
    time.sleep(seconds)
    return "Nothing to do."


@flow(name="slow")
def slow(name: str, seconds: float = 3.0) -> None:
    record = load_settings().home.root / f"{name}.txt"
    with record.open("a") as file:
        file.write("began\n")
    time.sleep(seconds)
    with record.open("a") as file:
        file.write("ended\n")


def run_small() -> None:
    made = [
        it.to_deployment(
            it.name,
            tags=["microseg"],
            entrypoint_type=EntrypointType.MODULE_PATH,
            paused=False,
            schedules=[IntervalSchedule(interval=timedelta(minutes=5))] if it is quick else None,
            concurrency_limit=1 if it is quick else None,
        )
        for it in (quick, slow)
    ]
    run(load_settings(), made[:1], made[1:])


if __name__ == "__main__":
    logging.getLogger("flows").setLevel(logging.INFO)
    if sys.argv[1:] == ["runner"]:
        # the flows are found by the name of their module, which is not __main__
        from tests.flows.service import small_service

        small_service.run_small()
    else:
        serve._parts = lambda settings: [Part("The runner", "tests.flows.service.small_service", arguments=("runner",))]
        serve.command()
