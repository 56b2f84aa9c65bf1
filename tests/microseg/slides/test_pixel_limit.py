import numpy as np
import pytest
import tifffile
from PIL import Image

from microseg.errors import ImageReadError
from microseg.slides import images
from microseg.slides.images import read_image


def test_own_limit_also_where_pillow_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((11, 10), np.uint16))
    Image.new("RGB", (10, 11)).save(tmp_path / "x.png")
    for name in ("x.png", "deep.tif"):
        with pytest.raises(ImageReadError, match="at most 100 pixels"):
            read_image(tmp_path / name)
