import pytest
import timm

from microseg.models.config import IMAGENET_MEAN, IMAGENET_STD
from microseg.models.encoder_normalization import KNOWN_ENCODERS, encoder_normalization, timm_name


@pytest.mark.parametrize("name", [name for name in KNOWN_ENCODERS if name != "blocks"])
def test_the_table_says_what_timm_says(name: str) -> None:
    known = timm.get_pretrained_cfg(timm_name(name))
    assert encoder_normalization(name) == (known.mean, known.std)


def test_an_encoder_that_is_not_in_the_table_is_looked_up() -> None:
    assert encoder_normalization("vit_base_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", ["blocks", "nobody knows this one"])
def test_without_pretrained_weights_it_is_imagenets(name: str) -> None:
    assert encoder_normalization(name) == (IMAGENET_MEAN, IMAGENET_STD)
