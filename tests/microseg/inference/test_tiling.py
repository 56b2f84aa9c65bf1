import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microseg.errors import SettingsError
from microseg.inference.tiling import Span, TilePlan, cut_tile, plan_spans

SIZES = st.tuples(
    st.integers(1, 3000),  # length
    st.integers(1, 40),  # tile beyond the least, in multiples
    st.integers(0, 70),  # halo
    st.sampled_from([1, 2, 16, 32]),  # multiple
)


def plan_tiles(height: int, width: int, **options: int) -> TilePlan:
    return TilePlan(plan_spans(height, **options), plan_spans(width, **options))


def spans_of(length: int, beyond: int, halo: int, multiple: int) -> tuple[tuple[Span, ...], int]:
    overlap = -(-2 * halo // multiple) * multiple
    tile = 2 * overlap + (1 + beyond) * multiple
    return plan_spans(length, tile=tile, halo=halo, multiple=multiple), tile


def test_two_tiles_as_computed_by_hand() -> None:
    # 100 px, tiles of 64 with halo 8: two tiles suffice, of (112 + 16) / 2 = 64 px; 112 is 100 rounded up.
    first, second = plan_spans(100, tile=64, halo=8, multiple=16)
    # They overlap over 48..64; the seam is at 56, and the two fade into one another over 52..60.
    assert first == Span(0, 64, 0, 60, 0, 8)
    assert second == Span(48, 112, 52, 100, 8, 0)
    assert first.weights[-8:] == pytest.approx([15 / 16, 13 / 16, 11 / 16, 9 / 16, 7 / 16, 5 / 16, 3 / 16, 1 / 16])
    assert second.inner_of_tile == slice(4, 52)


def test_image_slightly_larger_than_a_tile_gets_small_tiles() -> None:
    spans = plan_spans(520, tile=512, halo=64, multiple=32)
    assert [span.stop - span.start for span in spans] == [352, 352]  # (544 + 128) / 2 = 336, rounded up


@given(SIZES)
def test_weights_sum_to_one_at_every_pixel(sizes: tuple[int, int, int, int]) -> None:
    length = sizes[0]
    spans, _ = spans_of(*sizes)
    total, covers = np.zeros(length), np.zeros(length, int)
    for span in spans:
        total[span.inner] += span.weights
        covers[span.inner] += 1
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert covers.max() <= 2


@given(SIZES)
def test_spans_are_aligned_and_equal_and_discard_half_a_halo(sizes: tuple[int, int, int, int]) -> None:
    length, _, halo, multiple = sizes
    spans, tile = spans_of(*sizes)
    assert len({span.stop - span.start for span in spans}) == 1
    for i, span in enumerate(spans):
        assert span.start % multiple == 0
        assert 0 < span.stop - span.start <= tile
        assert i == 0 or span.inner_start - span.start >= halo // 2
        assert i == len(spans) - 1 or span.stop - span.inner_stop >= halo // 2
    assert spans[0].start == spans[0].inner_start == 0
    assert spans[-1].inner_stop == length <= spans[-1].stop < length + multiple


@given(st.integers(1, 150), st.integers(1, 150))
def test_pasted_tiles_give_the_image(height: int, width: int) -> None:
    image = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    plan = plan_tiles(height, width, tile=64, halo=8, multiple=16)
    total = np.zeros(image.shape)
    tiles = list(plan)
    assert len(tiles) == len(plan)
    for tile in tiles:
        seen = cut_tile(image, tile)
        assert seen.shape == (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start, 3)
        kept = seen[tile.rows.inner_of_tile, tile.columns.inner_of_tile]
        total[tile.rows.inner, tile.columns.inner] += kept * tile.weights[..., None]
    np.testing.assert_allclose(total, image, atol=1e-3)


def test_mirrors_pixels_beyond_the_image() -> None:
    image = np.arange(5, dtype=np.uint8).reshape(1, 5, 1)
    (tile,) = plan_tiles(1, 5, tile=64, halo=8, multiple=8)
    assert cut_tile(image, tile)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]


@pytest.mark.parametrize("wrong", [{"tile": 64, "halo": 32}, {"tile": 0, "halo": 0}, {"tile": 64, "halo": -1}])
def test_rejects_tiles_too_small_for_the_halo(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="enlarge the tile or reduce the halo"):
        plan_tiles(1000, 1000, **wrong, multiple=16)
