from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.evidence.predictions import StoredPredictions
from microseg.inference.engine import Engine


def test_predictions_are_computed_once_and_stored_in_8_bits(tiny_network: Callable[..., Any], tmp_path: Path) -> None:
    network = tiny_network(mpp=0.5)
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    first = StoredPredictions(tmp_path, lambda: network).probabilities(image, 0.5)
    np.testing.assert_allclose(first, Engine(network).probabilities(image, 0.5), atol=0.51 / 255)

    def refuse() -> Any:
        raise AssertionError("built again")

    again = StoredPredictions(tmp_path, refuse)
    np.testing.assert_array_equal(again.probabilities(image, 0.5), first)
    for other, mpp in ((image[::-1], 0.5), (image.reshape(64, 40, 3), 0.5), (image, None)):
        with pytest.raises(AssertionError, match="built again"):
            again.probabilities(other, mpp)
