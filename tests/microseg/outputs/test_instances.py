"""Separated objects of a slide in strips equal those of the whole image, with their stains and label image."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from microseg.models.separation import Separation, separate_objects
from microseg.outputs import objects
from microseg.outputs.objects import ObjectFinder
from microseg.outputs.pixel_amounts import Intensities
from microseg.outputs.stains import Stains
from microseg.outputs.writers import MaskStrip, ObjectBatch
from tests.microseg.outputs.finding import image_info

SMALL = Separation((1,), 0.1, 200)  # a reach of 4 pixels, and objects of two
SHAPES = Separation((1,), 0.1, by_shape=True)
STAINS = Stains.named(["hematoxylin", "dab"], ring=2)

Bytes = npt.NDArray[np.uint8]
IMAGES = st.tuples(st.integers(1, 40), st.integers(1, 10)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 1, 2])),
        arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 255])),
    )
)
CUTS = st.lists(st.integers(0, 40), max_size=8).map(sorted)


def find_separated(
    mask: Bytes,
    interior: Bytes,
    cuts: list[int],
    folder: Path | None = None,
    piece: int | None = None,
    separation: Separation = SMALL,
) -> tuple[list[ObjectBatch], npt.NDArray[np.int32]]:
    """Objects with stains, and their numbers at each pixel, from strips."""
    image = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    options = {"separation": separation, "amounts": STAINS, "numbers": True, "piece": piece}
    with ObjectFinder(mask.shape[1], folder, **options) as finder:  # type: ignore[arg-type]
        for start, stop in zip((0, *cuts), (*cuts, len(mask)), strict=True):
            if stop > start:
                rows = slice(start, stop)
                finder.add(MaskStrip(start, mask[rows], None, interior=interior[rows], image=image[rows]))
        finder.finish()
        return list(finder.batches(image_info(mask, mpp=0.5))), np.concatenate(list(finder.labels()))


@settings(max_examples=60)
@given(images=IMAGES, cuts=CUTS, piece=st.sampled_from([None, 1, 40]), separation=st.sampled_from([SMALL, SHAPES]))
def test_strips_do_not_change_separated_objects(
    images: tuple[Bytes, Bytes], cuts: list[int], piece: int | None, separation: Separation, tmp_path: Path
) -> None:
    mask, interior = images
    cuts = [min(cut, len(mask)) for cut in cuts]
    (whole,), expected = find_separated(mask, interior, [], separation=separation)
    given = None if separation.by_shape else interior
    np.testing.assert_array_equal(expected, separate_objects(mask, given, separation))
    found, numbers = find_separated(mask, interior, cuts, tmp_path, piece, separation)
    np.testing.assert_array_equal(numbers, expected)
    assert shapely.equals(found[0].polygons, whole.polygons).all()
    columns = [c for c in whole.table.columns if not c.startswith(("perimeter", "circularity"))]
    pd.testing.assert_frame_equal(found[0].table[columns], whole.table[columns], check_dtype=False, atol=1e-4)


def test_stains_of_an_object_and_its_ring_by_hand() -> None:
    """A nucleus of pure hematoxylin of density 1 in a ring of DAB of density 0.5."""
    from microseg.datasets.stain import STAIN_VECTORS

    mask = np.zeros((9, 9), np.uint8)
    mask[3:6, 3:6] = 1
    amounts = np.zeros((9, 9, 3), np.float64)
    amounts[..., 2] = 0.5
    amounts[3:6, 3:6] = (1.0, 0.0, 0.0)
    image = np.round(255 * 10 ** -(amounts @ STAIN_VECTORS)).astype(np.uint8)
    with ObjectFinder(9, amounts=STAINS) as finder:
        finder.add(MaskStrip(0, mask, None, image=image))
        finder.finish()
        (batch,) = finder.batches(image_info(mask))
    row = batch.table.iloc[0]
    assert row["hematoxylin_od_mean"] == pytest.approx(1.0, abs=0.02)
    assert row["dab_od_mean"] == pytest.approx(0.0, abs=0.02)
    assert row["ring_hematoxylin_od_mean"] == pytest.approx(0.0, abs=0.02)
    assert row["ring_dab_od_mean"] == pytest.approx(0.5, abs=0.02)
    assert row["ring_dab_od_std"] == pytest.approx(0.0, abs=1e-3)


def test_intensities_of_an_object_and_its_ring_by_hand() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[3:6, 3:6] = 1
    image = np.full((9, 9, 3), 51, np.uint8)
    image[3:6, 3:6] = (255, 0, 9)
    image[4, 4] = (0, 102, 9)
    with ObjectFinder(9, amounts=Intensities(("nuclei", "CD 44"), ring=2)) as finder:
        finder.add(MaskStrip(0, mask, None, image=image))
        finder.finish()
        (batch,) = finder.batches(image_info(mask))
    row = batch.table.iloc[0]
    assert row["nuclei_intensity_mean"] == pytest.approx(8 / 9)
    assert row["nuclei_intensity_std"] == pytest.approx(np.std([1] * 8 + [0]))
    assert row["CD 44_intensity_mean"] == pytest.approx(0.4 / 9)
    assert row["ring_nuclei_intensity_mean"] == row["ring_CD 44_intensity_mean"] == pytest.approx(0.2)
    assert list(row.index)[-8:] == list(Intensities(("nuclei", "CD 44"), ring=2).columns)


def test_outline_that_grows_too_large_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A class that hangs together over the whole slide: measured once, its outlines cover it without overlap."""
    monkeypatch.setattr(objects, "_LARGEST_OUTLINE", 300)
    rng = np.random.default_rng(0)
    mask = (rng.random((200, 60)) < 0.8).astype(np.uint8)
    mask[:, ::6] = 1  # hangs together
    mask[199, 59] = 0
    info = image_info(mask)
    with ObjectFinder(60, tmp_path, piece=600) as finder, ObjectFinder(60, piece=None) as other:
        for one in (finder, other):
            one.add(MaskStrip(0, mask, None))
            one.finish()
        batches, (whole,) = list(finder.batches(info)), other.batches(info)
    tables = pd.concat([batch.table for batch in batches], ignore_index=True)
    labels, parts, polygons = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("labels", "parts", "polygons")
    )
    columns = [c for c in tables.columns if not c.startswith(("perimeter", "circularity"))]
    pd.testing.assert_frame_equal(tables[columns], whole.table[columns], check_dtype=False)
    assert parts.max() >= 5
    assert shapely.is_valid(polygons).all()
    assert shapely.get_num_coordinates(polygons).max() < 2000 < shapely.get_num_coordinates(whole.polygons).max()
    for label, outline in zip(whole.labels, whole.polygons, strict=True):
        mine = polygons[labels == label]
        assert shapely.area(mine).sum() == shapely.area(outline)
        assert shapely.equals(shapely.union_all(mine), outline)


def test_object_whose_ring_alone_reaches_the_next_piece_keeps_its_outline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its outlines are in the file before its last piece, which has none: GeoJSON must not have an empty polygon."""
    monkeypatch.setattr(objects, "_LARGEST_OUTLINE", 4)
    mask = np.zeros((12, 12), np.uint8)
    mask[1:6, 1:6] = 1  # ends where the second piece does
    image = np.full((12, 12, 3), 128, np.uint8)
    with ObjectFinder(12, tmp_path, amounts=STAINS, piece=12) as finder:  # pieces of 2 · (2 + 2) rows at least
        for start, stop in ((0, 6), (6, 12)):
            finder.add(MaskStrip(start, mask[start:stop], None, image=image[start:stop]))
        finder.finish()
        (batch,) = finder.batches(image_info(mask))
    (outline,) = batch.polygons
    assert outline.bounds == (1, 1, 6, 6)
    assert batch.table.loc[0, ["area_px", "at_border", "solidity"]].tolist() == [25, 0, 1]
