"""The batch that runs by itself."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.segment import segment

__all__ = ["segment_waiting"]


@flow(name="segment-waiting", flow_run_name="segment what waits in {folder}")
def segment_waiting(folder: Path) -> State[Any]:
    """Segment a folder's images with the production model, where there are any.

    Args:
        folder: of images, or a lab's folder with images/ and lab.yaml.

    Returns:
        Completed, saying what was done.
    """
    if not any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")):
        return Completed(message=f"Nothing to do: {folder} holds no images.")
    batch = segment(folder)
    counts = f"{batch.done} segmented, {batch.skipped} were before, {batch.failed} could not be"
    return Completed(message=f"{counts}; outputs in {batch.out}.")
