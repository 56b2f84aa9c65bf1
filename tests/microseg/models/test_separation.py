from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from microseg.models.separation import (
    Separation,
    _elevation,
    _smooth,
    _tops,
    class_mask,
    grow_labels,
    interior_bytes,
    label_objects,
    separate_objects,
    separate_regions,
)

SMALL = Separation((1,), 0.1)  # a reach of 4 pixels
IMAGES = st.tuples(st.integers(1, 24), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 1, 2])),
        arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 0, 255])),
    )
)


def two_discs(distance: int, radius: int = 10) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Two overlapping discs of one class, and their interior."""
    y, x = np.mgrid[:40, :60]
    from_centers = [np.hypot(y - 20, x - 30 - side * distance / 2) for side in (-1, 1)]
    mask = (np.minimum(*from_centers) < radius).astype(np.uint8)
    depth = (radius - np.minimum(*from_centers)) / 4
    return mask, np.round(255 * depth.clip(0, 1)).astype(np.uint8)


def test_touching_discs_are_two_objects_of_half_the_area() -> None:
    mask, interior = two_discs(16)
    assert label_objects(mask).max() == 1
    labels = separate_objects(mask, interior, Separation((1,)))
    assert np.bincount(labels.ravel())[1:].tolist() == pytest.approx([mask.sum() / 2] * 2, rel=0.05)
    np.testing.assert_array_equal(labels > 0, mask > 0)


def test_only_chosen_classes_are_separated() -> None:
    mask, interior = two_discs(16)
    both = np.concatenate([mask, 2 * mask])
    labels = separate_objects(both, np.concatenate([interior, interior]), Separation((2,)))
    assert labels.max() == 3
    assert len(np.unique(labels[:40])) == 2


def test_shallow_saddle_does_not_separate() -> None:
    mask, interior = two_discs(6)
    interior = np.maximum(interior, np.where(mask > 0, 240, 0)).astype(np.uint8)
    assert separate_objects(mask, interior, Separation((1,))).max() == 1


def test_small_objects_and_pixels_without_a_seed_are_no_objects() -> None:
    mask, interior = two_discs(16)
    half = int(mask.sum()) // 2
    mask[:3, :3] = 1  # without an interior
    assert separate_objects(mask, interior, Separation((1,)))[:3, :3].max() == 0
    assert separate_objects(mask, interior, Separation((1,), smallest=half * 0.9)).max() == 2
    assert separate_objects(mask, interior, Separation((1,), smallest=half * 1.1)).max() == 0


def test_pixel_that_two_seeds_reach_at_once_belongs_to_the_upper_one() -> None:
    labels = np.array([[1], [0], [0], [0], [2]], np.int32)
    grow_labels(labels, np.ones((5, 1), np.uint8), 2)
    assert labels.ravel().tolist() == [1, 1, 1, 2, 2]


def test_labels_grow_only_over_their_class_and_for_some_steps() -> None:
    labels = np.array([[1, 0, 0, 0, 0, 0]], np.int32)
    grow_labels(labels, np.array([[1, 1, 1, 1, 2, 1]], np.uint8), 2)
    assert labels.tolist() == [[1, 1, 1, 0, 0, 0]]
    grow_labels(labels, np.array([[1, 1, 1, 1, 2, 1]], np.uint8), 9)
    assert labels.tolist() == [[1, 1, 1, 1, 0, 0]]


def test_mask_alone_divides_touching_discs_where_they_are_narrow() -> None:
    mask, _ = two_discs(16)
    apart = separate_objects(mask, None, Separation((1,), by_shape=True))
    assert np.bincount(apart.ravel())[1:].tolist() == pytest.approx([mask.sum() / 2] * 2, rel=0.05)
    fused, _ = two_discs(6)
    assert separate_objects(fused, None, Separation((1,), by_shape=True)).max() == 1
    np.testing.assert_array_equal(apart > 0, mask > 0)


def test_large_nuclei_need_a_deeper_saddle_than_small_ones() -> None:
    """Two discs that are six pixels narrower between them than in the middle of each."""
    for radius, objects in ((5, 2), (14, 1)):
        mask = np.zeros((40, 80), np.uint8)
        y, x = np.mgrid[:40, :80]
        for center in (40 - radius, 40 + radius):
            mask[np.hypot(y - 20, x - center) < radius + 0.5] = 1
        neck = radius - 3
        mask[20 - neck : 21 + neck, 40 - radius : 40 + radius] = 1
        labels = separate_objects(mask, np.where(mask > 0, 255, 0).astype(np.uint8), Separation((1,)))
        assert labels.max() == objects, radius


def test_textured_interior_of_a_large_nucleus_does_not_divide_it() -> None:
    """The interior of a nucleus of another magnification dips inside, more than 16 pixels from one top to the next."""
    y, x = np.mgrid[:80, :80]
    mask = (np.hypot(y - 40, x - 40) < 32).astype(np.uint8)
    dips = 90 * (np.cos(x / 5) * np.cos(y / 5) > 0.5)
    interior = np.where(mask > 0, 220 - dips, 30).astype(np.uint8)
    labels = separate_objects(mask, interior, Separation((1,)))
    assert labels.max() == 1
    np.testing.assert_array_equal(labels > 0, mask > 0)


def test_thin_and_small_regions_of_a_mask_keep_their_pixels() -> None:
    """Where shapes alone divide objects, nothing but specks of few pixels may be lost."""
    mask = np.zeros((60, 60), np.uint8)
    mask[5:8, 5:55] = 1  # a fiber
    mask[20:24, 20:24] = 1
    labels = separate_objects(mask, None, Separation((1,), by_shape=True))
    np.testing.assert_array_equal(labels > 0, mask > 0)
    assert labels.max() == 2


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_class_is_the_first_of_the_most_probable(classes: int) -> None:
    probabilities = np.random.default_rng(0).integers(0, 4, (classes, 9, 11)).astype(np.float32)  # many are equal
    np.testing.assert_array_equal(class_mask(probabilities), probabilities.argmax(0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (30, 41)])
def test_means_and_tops_are_those_of_two_dimensional_filters(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    smooth = values.astype(np.int64)
    for _ in range(2):
        smooth = (ndimage.correlate(smooth, np.outer([1, 2, 1], [1, 2, 1]), mode="nearest") + 8) // 16
    np.testing.assert_array_equal(_smooth(values), smooth)
    filled = np.maximum(smooth - 32, 0)
    for _ in range(5):
        filled = np.minimum(ndimage.grey_dilation(filled, (3, 3), mode="constant"), smooth)
    np.testing.assert_array_equal(_tops(smooth.astype(np.uint8), 5), smooth - filled >= 16)


@pytest.mark.parametrize("steps", [0, 1, 4, 99])
def test_labels_grow_as_pixel_by_pixel(steps: int) -> None:
    random = np.random.default_rng(steps)
    mask = random.choice(np.array([0, 1, 1, 1, 1, 1, 2], np.uint8), (40, 30))
    labels = np.where(random.random(mask.shape) < 0.1, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    labels = np.where(mask > 0, labels, 0).astype(np.int32)
    expected = np.pad(labels, 1)
    classes = np.pad(mask, 1)
    for _ in range(steps):
        before = expected.copy()
        for y, x in np.argwhere((before == 0) & (classes > 0)):
            around = [(y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)]
            reaching = [before[at] for at in around if before[at] and classes[at] == classes[y, x]]
            expected[y, x] = reaching[0] if reaching else 0
    grow_labels(labels, mask, steps)
    np.testing.assert_array_equal(labels, expected[1:-1, 1:-1])


def test_interior_bytes_round() -> None:
    assert interior_bytes(np.array([0, 0.4979, 0.5, 1], np.float32)).tolist() == [0, 127, 128, 255]


@settings(max_examples=80)
@given(IMAGES)
def test_objects_are_connected_and_of_one_class(images: tuple[npt.NDArray[np.uint8], ...]) -> None:
    mask, interior = images
    labels = separate_objects(mask, interior, SMALL)
    np.testing.assert_array_equal((labels > 0) & (mask == 2), mask == 2)
    assert not (labels[mask == 0] > 0).any()
    numbers = np.unique(labels[labels > 0])
    assert numbers.tolist() == list(range(1, len(numbers) + 1))
    firsts = [np.flatnonzero(labels == number)[0] for number in numbers]
    assert firsts == sorted(firsts)
    for number in numbers:
        assert len(np.unique(mask[labels == number])) == 1
        assert ndimage.label(labels == number)[1] == 1


@settings(max_examples=80)
@given(IMAGES, st.integers(0, 23), st.integers(1, 24), st.booleans())
def test_rows_are_the_same_with_their_context_alone(
    images: tuple[npt.NDArray[np.uint8], ...], first: int, count: int, of_mask: bool
) -> None:
    """The partition of some rows does not depend on anything beyond their context."""
    mask, interior = images
    separation = replace(SMALL, by_shape=of_mask)
    first = min(first, len(mask) - 1)
    last = min(first + count, len(mask))
    around = slice(max(0, first - separation.context), last + separation.context)
    whole = separate_regions(mask, None if of_mask else interior, separation)[first:last]
    part = separate_regions(mask[around], None if of_mask else interior[around], separation)[first - around.start :][
        : last - first
    ]
    # objects may be connected outside of the part, so each one of the part lies in one of the whole
    pairs = np.unique(np.stack([part.ravel(), whole.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5, 12.0, 15.0, 20.0])
def test_elevation_is_that_of_the_euclidean_distance(scale: float) -> None:
    core = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(300, 700)), 8) > -0.02
    core[:, 100:] = True  # farther from the border than what counts, at most scales
    distance = np.minimum(ndimage.distance_transform_edt(core) / scale, 16)
    expected = np.where(core, np.round(40 * (np.sqrt(distance + 1) - 1)), 0)
    np.testing.assert_array_equal(_elevation(core, scale, 0), expected)
    assert (_elevation(np.ones((3, 5), bool), scale, 100) == 100 + round(40 * (np.sqrt(17) - 1))).all()
