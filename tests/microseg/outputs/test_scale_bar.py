import numpy as np
from PIL import ImageFont

from microseg.outputs.scale_bar import _font_file


def test_the_font_has_every_character_of_a_scale_bar() -> None:
    """Pillow's own font shows a box in place of µ."""
    font = ImageFont.truetype(_font_file(), size=20)
    shapes = {character: np.array(font.getmask(character)).tobytes() for character in "0125mµ.e-\uffff"}
    assert len(set(shapes.values())) == len(shapes)  # that of a character that no font has is the box
