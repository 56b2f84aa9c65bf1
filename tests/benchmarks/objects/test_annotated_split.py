import numpy as np

from benchmarks.objects.annotated_split import split_as_annotated


def test_pixels_of_a_mask_go_to_the_nearest_annotated_object() -> None:
    mask = np.array([[1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1]], np.uint8)
    annotated = np.array([[7, 7, 0, 4, 0, 0, 0, 0, 9, 9, 0]], np.int32)
    labels = split_as_annotated(mask, annotated, 2)
    assert labels[0, :2].tolist() == [7, 7]
    assert labels[0, 3:5].tolist() == [4, 4]
    assert labels[0, 2] in (4, 7)
    assert labels[0, 6] == labels[0, 7] != 0  # a region without an annotated object is one
    assert labels[0, [5, 8, 9, 10]].tolist() == [0, 0, 0, 0]  # 9 is not in the mask, and the last region is too small
