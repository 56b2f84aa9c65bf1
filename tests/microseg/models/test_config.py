from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from microseg.models.config import NetworkConfig

CLASSES = ("background", "gland")


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["background", "腺体", "épithélium", "a b", '"']), min_size=2, unique=True),
    st.lists(st.integers(1, 512), min_size=1, max_size=6),
    st.one_of(st.none(), st.floats(0.01, 100)),
)
def test_round_trip_through_json(classes: list[str], channels: list[int], mpp: float | None) -> None:
    config = NetworkConfig(classes=tuple(classes), encoder="blocks", channels=tuple(channels), mpp=mpp)
    assert NetworkConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": ("gland",)}, "2 to 255 classes"),
        ({"classes": ("a", "a")}, "distinct, non-empty"),
        ({"classes": ("a", " ")}, "distinct, non-empty"),
        ({"channels": ()}, "at least 1 item"),
        ({"channels": (8, 0)}, "greater than or equal to 1"),
        ({"pyramid_bins": ()}, "at least 1 item"),
        ({"std": (0.2, 0.2, 0.0)}, "greater than 0"),
        ({"mpp": 0.0}, "greater than 0"),
        (
            {"encoder": "blocks", "channels": (8, 8), "decoder_channels": (8,)},
            "expected 2 decoder_channels",
        ),
        ({"depth": 4}, "Extra inputs are not permitted"),
    ],
)
def test_rejects_invalid_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkConfig(**{"classes": CLASSES, **wrong})


def test_is_frozen() -> None:
    config = NetworkConfig(classes=CLASSES)
    with pytest.raises(ValidationError, match="frozen"):
        config.mpp = 0.5  # type: ignore[misc]
