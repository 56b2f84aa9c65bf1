import pytest
import timm

from microseg.model.config import IMAGENET_MEAN, IMAGENET_STD
from microseg.model.normalisation import KNOWN_ENCODERS, encoder_normalisation, timm_name


@pytest.mark.parametrize("name", [name for name in KNOWN_ENCODERS if name != "blocks"])
def test_the_table_says_what_timm_says(name: str) -> None:
    known = timm.get_pretrained_cfg(timm_name(name))
    assert encoder_normalisation(name) == (known.mean, known.std)


def test_an_encoder_that_is_not_in_the_table_is_looked_up() -> None:
    assert encoder_normalisation("vit_base_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", ["blocks", "nobody knows this one"])
def test_without_pretrained_weights_it_is_imagenets(name: str) -> None:
    assert encoder_normalisation(name) == (IMAGENET_MEAN, IMAGENET_STD)
