"""Post-processing of exported networks: the code that numbers objects, with the settings of a network."""

import inspect

from microseg.models import separation
from microseg.models.config import NetworkConfig

__all__ = ["POST_PROCESSING_FILE", "post_processing_code"]

POST_PROCESSING_FILE = "separate_objects.py"

_USE = '''

def number_objects(outputs, scale=1.0):
    """Number the objects of an image from the outputs of the exported network.

    Args:
        outputs: Class probabilities ({classes}), and after them the interior, as an array.
        scale: Pixels of the outputs per pixel of the model; other than 1 where the outputs were resampled.

    Shape:
        ({channels}, H, W) → (H, W)

    Returns:
        Number of the object at each pixel, from 1; 0 where there is none.
    """
    mask = class_mask(outputs[:{count}])
    interior = interior_bytes(np.asarray(outputs[{count}], np.float32))
    return separate_objects(mask, interior, Separation({indices}, scale, {smallest}))
'''


def post_processing_code(config: NetworkConfig) -> str:
    """Python code with a function ``number_objects``, which needs NumPy and scikit-image only.

    Args:
        config: Configuration of a network that separates instances.
    """
    count = len(config.classes)
    values = {"classes": ", ".join(config.classes).replace("\\", "").replace('"', "'"), "channels": count + 1}
    values |= {"count": count, "indices": config.instance_indices, "smallest": config.smallest_instance}
    return inspect.getsource(separation) + _USE.format(**values)
