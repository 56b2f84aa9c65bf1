from pathlib import Path

import pytest


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A complete incoming dataset of one image, whose content is not read."""
    folder = tmp_path / "incoming" / "lab_c"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"a")
    (folder / "lab.yaml").write_text("lab: lab_c\nstain: H&E\nclasses: [background, gland]\n")
    return folder
