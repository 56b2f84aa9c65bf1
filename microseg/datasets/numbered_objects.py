"""Numbered objects of an incoming dataset: instance masks in ``instances/``, beside the masks of class indices."""

from pathlib import Path

from microseg.annotations.index_masks import IGNORE, read_mask
from microseg.annotations.instance_masks import INSTANCES, read_instances, write_instances
from microseg.datasets.checks import CheckedImage
from microseg.datasets.image_table import image_key, image_name
from microseg.datasets.listing import IncomingFiles
from microseg.errors import ImageReadError, MicrosegError
from microseg.slides.folder import is_system_file
from microseg.slides.images import IMAGE_SUFFIXES

__all__ = ["NumberedObjects"]


class NumberedObjects:
    """The instance masks of an incoming dataset, each with the name of its image.

    Args:
        source: Folder of the incoming dataset.
        staged: Folder in which the checked files are written; it has the masks of the images in ``masks/``.
    """

    def __init__(self, source: Path, staged: Path) -> None:
        folder = source / INSTANCES
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        usable = [it for it in found if it.suffix.lower() in IMAGE_SUFFIXES and not is_system_file(it.name)]
        self._files = {image_key(image_name(path)): path for path in usable}
        self._staged = staged

    def stage(self, image: CheckedImage, mask: Path | None) -> str | None:
        """Check the numbered objects of an image and write them.

        Args:
            image: The image.
            mask: File of its mask of class indices; None where it is unlabelled.

        Returns:
            The reason why image and instance mask cannot be used; None where they can, or there is none.
        """
        path = self._files.pop(image_key(image.name), None)
        if path is None:
            return None
        try:
            numbers = read_instances(path)
            if numbers.shape != (image.height, image.width):
                raise ImageReadError(
                    f"{path}: expected the image's size {image.width} x {image.height}, got {numbers.shape[1]} x "
                    f"{numbers.shape[0]}."
                )
            if mask is None:
                raise ImageReadError(
                    f"{path}: expected a mask of the same name, which states the class of each object."
                )
            classes = read_mask(mask)
            if outside := int(((numbers > 0) & (classes == 0)).sum()):
                raise ImageReadError(
                    f"{path}: expected objects where the mask has a class, got {outside} pixels of objects on its "
                    f"background. Write {IGNORE} into the mask where the class is unknown."
                )
            write_instances(self._staged / INSTANCES / f"{image.name}.png", numbers)
        except MicrosegError as error:
            return f"its instance mask {path.name} is rejected: {str(error).removeprefix(f'{path}: ')}"
        return None

    def reject_others(self, files: IncomingFiles) -> None:
        """Reject instance masks without an image that is accepted."""
        for path in self._files.values():
            files.reject(path, "expected an image of the same name in images/ that is accepted, found none.")
