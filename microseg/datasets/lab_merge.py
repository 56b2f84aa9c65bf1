"""Merging ``lab.yaml`` of further images with that of a lab's dataset."""

from microseg.datasets.lab import LabMetadata
from microseg.datasets.lab_channels import merge_channels
from microseg.errors import LabError

__all__ = ["merge_metadata"]


def merge_metadata(dataset: LabMetadata, incoming: LabMetadata) -> LabMetadata:
    """Merge the metadata of a dataset with that of further images; what those do not state is kept.

    Args:
        dataset: Metadata of the dataset.
        incoming: Metadata of the incoming dataset.

    Returns:
        The metadata of both.

    Raises:
        LabError: They state a different stain, classes, pixel size or channels.
    """
    for field in ("stain", "classes", "mpp", "bit_depth"):
        before, now = getattr(dataset, field), getattr(incoming, field)
        if None not in (before, now) and before != now:
            raise LabError(
                f"lab {dataset.lab}: expected {field} {before} as in the dataset, got {now}. Correct lab.yaml, or give "
                "the incoming dataset another lab name"
                f"{'; images.csv can state mpp for each image' if field == 'mpp' else ''}."
            )
    stated = {field: value for field, value in incoming if field in incoming.model_fields_set and value is not None}
    if "class_names" in stated:
        before = dataset.class_names
        stated["class_names"] = {
            name: tuple(dict.fromkeys((*before.get(name, ()), *incoming.class_names.get(name, ()))))
            for name in dataset.classes
            if name in before or name in incoming.class_names
        }
    try:
        stated["channels"] = merge_channels(dataset.channels, incoming.channels)
    except ValueError as error:
        raise LabError(
            f"lab {dataset.lab}: {error}. Correct lab.yaml, or give the incoming dataset another lab name."
        ) from error
    return dataset.model_copy(update=stated)
