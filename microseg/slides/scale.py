"""From an image's pixel size to the model's."""

__all__ = ["model_zoom"]


def model_zoom(mpp: float | None, model_mpp: float | None) -> float:
    """Factor by which an image is enlarged to the model's scale.

    Args:
        mpp: microns per pixel of the image; None if unknown.
        model_mpp: the model's; None if unknown.

    Returns:
        1 where either is unknown.
    """
    return mpp / model_mpp if mpp is not None and model_mpp is not None else 1.0
