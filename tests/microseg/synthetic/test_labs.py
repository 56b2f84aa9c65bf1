import csv
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from microseg.annotations.index_masks import read_mask
from microseg.datasets.image_table import read_image_table
from microseg.datasets.lab import read_lab_metadata
from microseg.datasets.stain import STAIN_VECTORS, optical_density
from microseg.errors import LabError
from microseg.slides.images import read_image
from microseg.synthetic import labs
from microseg.synthetic.labs import LAB_A, LAB_B, MixedLab, generate_image, generate_lab

SIZE, MPP = 96, 2.0  # 192 microns, drawn coarsely: cheap


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("profile", [LAB_A, LAB_B], ids=["a", "b"])
def test_image_depends_on_the_seed_only(profile):
    image, mask = generate_image(profile, SIZE, MPP, 3)
    again, mask_again = generate_image(profile, SIZE, MPP, 3)
    other, other_mask = generate_image(profile, SIZE, MPP, 4)
    assert image.shape == (SIZE, SIZE, 3)
    assert mask.shape == (SIZE, SIZE)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert (mask != other_mask).mean() > 0.1
    assert (image != other).mean() > 0.5


@pytest.fixture(scope="module")
def sections():
    return {profile.name: [generate_image(profile, SIZE, MPP, seed) for seed in range(6)] for profile in (LAB_A, LAB_B)}


@pytest.mark.parametrize("name", ["lab_a", "lab_b"])
def test_glands_cover_a_third_to_a_half(sections, name):
    shares = [mask.mean() for _, mask in sections[name]]
    assert 0.30 < np.mean(shares) < 0.50
    assert 0.10 < min(shares) <= max(shares) < 0.70


def test_white_regions_are_not_only_glands(sections):
    white = np.stack([image.min(axis=2) > 220 for image, _ in sections["lab_a"]])
    gland = np.stack([mask > 0 for _, mask in sections["lab_a"]])
    assert white[gland].mean() > 0.10  # lumen
    assert white[~gland].mean() > 0.02  # vessels, fat, clefts
    assert 0.5 < gland[white].mean() < 0.95


def unmix(image, stains):
    """Amounts of two stains in each pixel, by least squares."""
    return optical_density(image) @ np.linalg.pinv(stains)


def test_labs_have_their_stains(sections):
    pink, mask_a, brown, mask_b = (
        np.stack(each) for name in ("lab_a", "lab_b") for each in zip(*sections[name], strict=True)
    )
    he, dab = unmix(pink, STAIN_VECTORS[:2]), unmix(brown, STAIN_VECTORS[::2])
    assert he[mask_a == 0, 1].mean() > 0.10  # eosin stains the stroma
    assert he[mask_a == 1, 0].mean() > 1.5 * he[mask_a == 0, 0].mean()  # glands have the most nuclei
    inside = dab[mask_b == 1, 1]
    assert np.percentile(inside, 90) > 1.8 * np.median(inside)  # some glands are positive (1.5 if none were)
    assert np.median(inside) < dab[mask_b == 0, 1].mean()  # not all are


def test_fraction_of_positive_glands_follows_the_profile():
    share = []
    for positive in (0.0, 1.0):
        image, mask = generate_image(replace(LAB_B, positive=positive), SIZE, MPP, 1)
        share.append(unmix(image, STAIN_VECTORS[::2])[mask == 1, 1].mean())
    assert share[1] > share[0] + 0.1


def test_generated_lab_is_an_incoming_dataset(tmp_path):
    folder = generate_lab(
        tmp_path / "in" / "x", LAB_A, images=3, size=64, mpp=2.0, labelled=True, test_images=2, seed=5
    )
    names = ["lab_a_000.png", "lab_a_001.png", "lab_a_002.png"]
    tests = ["lab_a_test_000.png", "lab_a_test_001.png"]
    assert folder == tmp_path / "in" / "x"
    assert set(tree(folder)) == {
        "lab.yaml",
        "images.csv",
        *(f"{part}/{name}" for part in ("images", "masks") for name in names),
        *(f"test/{part}/{name}" for part in ("images", "masks") for name in tests),
    }
    assert list(tmp_path.joinpath("in").iterdir()) == [folder]  # no temporary files beside it
    metadata = read_lab_metadata(folder)
    assert (metadata.lab, metadata.stain, metadata.classes, metadata.mpp, metadata.labelled) == (
        "lab_a",
        "H&E",
        ("background", "gland"),
        2.0,
        True,
    )
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == names
    assert [row["group"] for row in rows] == ["lab_a_slide_000", "lab_a_slide_000", "lab_a_slide_001"]
    assert {entry.mpp for entry in read_image_table(folder).values()} == {2.0}
    for part in ("images", "test/images"):
        for path in (folder / part).iterdir():
            mask = read_mask(path.parent.parent / "masks" / path.name)
            assert read_image(path).shape == (64, 64, 3)
            assert set(np.unique(mask)) <= {0, 1}


def test_unlabelled_lab_has_masks_of_test_images_only(tmp_path):
    folder = generate_lab(tmp_path / "b", LAB_B, images=1, size=64, labelled=False, test_images=1, seed=0)
    assert not (folder / "masks").exists()
    assert len(list((folder / "test" / "masks").iterdir())) == 1
    assert not read_lab_metadata(folder).labelled


def test_files_depend_on_the_seed_and_not_on_the_number_of_images(tmp_path):
    def make(name, images, seed=1):
        return tree(generate_lab(tmp_path / name, LAB_B, images=images, size=48, labelled=True, seed=seed))

    one, again, more, other = make("one", 2), make("again", 2), make("more", 3), make("other", 2, seed=2)
    assert one == again
    images = {name: digest for name, digest in one.items() if name.endswith(".png")}
    assert images.items() <= more.items()
    assert all(other[name] != digest for name, digest in images.items() if name.startswith("images/"))


def test_train_test_and_labs_have_different_sections(tmp_path):
    a = generate_lab(tmp_path / "a", LAB_A, images=1, size=64, labelled=True, test_images=1, seed=0)
    c = generate_lab(tmp_path / "c", replace(LAB_A, name="lab_c"), images=1, size=64, labelled=True, seed=0)
    masks = [
        read_mask(path).tobytes()
        for path in (a / "masks/lab_a_000.png", a / "test/masks/lab_a_test_000.png", c / "masks/lab_c_000.png")
    ]
    assert len(set(masks)) == 3
    assert read_lab_metadata(c).lab == "lab_c"


def test_images_of_a_slide_are_similar(tmp_path):
    profile = replace(LAB_A, slide_variation=0.4)
    folder = generate_lab(tmp_path / "a", profile, images=8, size=64, mpp=2.0, labelled=False, seed=0)
    colors = np.array([read_image(path).mean(axis=(0, 1)) for path in sorted((folder / "images").iterdir())])
    slides = colors.reshape(4, 2, 3)
    within = np.abs(slides[:, 0] - slides[:, 1]).mean()
    between = np.abs(slides[:, None].mean(axis=2) - slides[None].mean(axis=2)).mean() * 4 / 3
    assert between > 1.5 * within


def test_rejects_folder_with_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LabError, match=r"expected a new or empty folder.*choose another"):
        generate_lab(tmp_path, LAB_A, images=1, size=48, labelled=False, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_failure_leaves_no_files(tmp_path, monkeypatch):
    def fail(path, array):
        raise OSError("disk full")

    monkeypatch.setattr(labs, "write_png", fail)
    with pytest.raises(OSError, match="disk full"):
        generate_lab(tmp_path / "a", LAB_A, images=1, size=48, labelled=False, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("profile", "pixels", "color"),
    [(LAB_A, 2877, (176.99, 130.32, 176.76)), (LAB_B, 3025, (161.13, 140.48, 141.16))],
    ids=["a", "b"],
)
def test_default_labs_are_unchanged(profile, pixels, color):
    """The demo and published figures depend on them; the tolerance is for other versions of the JPEG library."""
    image, mask = generate_image(profile, SIZE, MPP, 7)
    assert mask.sum() == pytest.approx(pixels, abs=3)
    np.testing.assert_allclose(image.mean(axis=(0, 1)), color, atol=0.1)


def test_gland_sites_may_hold_none():
    share = {}
    for glands in (0.0, 0.2, 1.0):
        profile = replace(LAB_B, tissue=replace(LAB_B.tissue, glands=glands))
        share[glands] = np.mean([generate_image(profile, SIZE, MPP, seed)[1].mean() for seed in range(8)])
    assert share[0.0] == 0
    assert share[0.2] / share[1.0] == pytest.approx(0.2, abs=0.1)


def test_mixed_lab_has_slides_of_each_profile(tmp_path):
    mixed = MixedLab("mixed", (LAB_A, LAB_B))
    names = {mixed.vary(np.random.default_rng(seed)).name for seed in range(10)}
    assert names == {"lab_a", "lab_b"}
    folder = generate_lab(tmp_path / "mixed", mixed, images=1, size=48, mpp=2.0, labelled=False, seed=0)
    assert read_lab_metadata(folder).stain == "H&E, DAB-H"


def test_test_images_may_show_something_else(tmp_path):
    empty = replace(LAB_A, empty=1.0)
    folder = generate_lab(
        tmp_path / "a", empty, images=1, size=64, mpp=2.0, labelled=True, test_images=1, test_profile=LAB_A, seed=0
    )
    assert not read_mask(folder / "masks" / "lab_a_000.png").any()
    assert read_mask(folder / "test" / "masks" / "lab_a_test_000.png").any()


def test_pixel_size_may_stay_unstated(tmp_path):
    folder = generate_lab(tmp_path / "a", LAB_A, images=1, size=48, mpp=2.0, state_mpp=False, labelled=False, seed=0)
    assert read_lab_metadata(folder).mpp is None
    assert {entry.mpp for entry in read_image_table(folder).values()} == {None}
