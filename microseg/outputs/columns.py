"""Unit and meaning of the columns of the tables of a batch, for the documentation and the page of the batch."""

import re

from microseg.outputs.pixel_amounts import QUANTITIES

__all__ = ["COLUMNS", "column"]

COLUMNS = {
    "image": ("", "File name of the image"),
    "name": ("", "Stem of the names of its output files"),
    "source": ("", "Path of the image"),
    "label": ("", "Number of the object in the image, from 1"),
    "class": ("", "Name of the class"),
    "model": ("", "Registered model and version that segmented the image, such as microseg-segmenter/3"),
    "version": ("", "Number of the model version that segmented the image"),
    "sha256": ("", "SHA-256 of the image file"),
    "reason": ("", "Why the image could not be segmented"),
    "width": ("px", "Width of the image"),
    "height": ("px", "Height of the image"),
    "mpp": ("µm/px", "Pixel size; empty if unknown"),
    "seconds": ("s", "Time of the network"),
    "area": ("px, µm²", "Area"),
    "area_mm2": ("mm²", "Area of the image; empty if the pixel size is unknown"),
    "perimeter": ("px, µm", "Length of the border (Benkrid and Crookes 2000)"),
    "centroid_x": ("px, µm", "Center of mass, from the left border of the image"),
    "centroid_y": ("px, µm", "Center of mass, from the upper border of the image"),
    "equivalent_diameter": ("px, µm", "Diameter of the circle of equal area"),
    "max_diameter": ("px, µm", "Largest Feret diameter"),
    "min_diameter": ("px, µm", "Smallest Feret diameter"),
    "eccentricity": ("0 to 1", "Of the ellipse with equal second moments; 0 is a circle"),
    "solidity": ("0 to 1", "Area divided by the area of the convex hull"),
    "circularity": ("0 to 1", "4π · area / perimeter²; 1 is a circle"),
    "at_border": ("0 or 1", "Whether the object touches the border of the image, which may cut it"),
    "mean_probability": ("0 to 1", "Mean probability of the object's class over its pixels"),
    "mean_confidence": ("0 to 1", "Mean of the highest class probability over all pixels"),
    "mean_entropy": ("0 to 1", "Mean entropy; 0 is certain, 1 means that all classes are equally probable"),
    "tissue_mm2": ("mm²", "Area of the tissue of a slide"),
    "glass_mm2": ("mm²", "Area of the glass of a slide"),
    "objects_per_mm2_<class>": ("1/mm²", "Objects of the class in a mm² of tissue; of the image where that is unknown"),
    "objects_<class>": ("", "Number of objects of the class"),
    "area_fraction_<class>": (
        "0 to 1",
        "Fraction of the tissue that the class covers; of the image where that is unknown",
    ),
    "dab_positive": ("0 or 1", "Whether the mean optical density of DAB in the object reaches inference.dab_threshold"),
    "region": ("", "Number of the region in its file, from 1"),
    "region_name": ("", "Class of the region's outline"),
    "cut_objects_<class>": ("", "Objects of the class that the border of the region crosses, which may distort counts"),
    "positive_<class>": ("", "Number of DAB-positive objects of the class"),
    "labelling_index_<class>": ("0 to 1", "Share of the objects of the class that are DAB-positive"),
    "ood_score": ("", "Out-of-distribution score; above 1 the image is beyond the limit of a single image"),
    "<stain>_od": ("optical density", "Mean (_mean) and standard deviation (_std) in the object"),
    "ring_<stain>_od": ("optical density", "The same in the ring around the object"),
    "<channel>_intensity": (
        "0 to 1",
        "Mean (_mean) and standard deviation (_std) of the channel in the object, as a part of its range in lab.yaml",
    ),
    "ring_<channel>_intensity": ("0 to 1", "The same in the ring around the object"),
}
"""Unit and meaning of each column of the tables, without its unit's suffix; a test compares it with written tables."""

_SUFFIX = {"_px": "px", "_um": "µm", "_um2": "µm²"}


def column(name: str) -> tuple[str, str]:
    """Unit and meaning of a column.

    Raises:
        KeyError: `COLUMNS` does not describe it.
    """
    for known, (unit, meaning) in COLUMNS.items():
        pattern = re.sub(r"<\w+>", "[^_].*?", known)
        if not known.endswith(tuple(f"_{quantity}" for quantity in QUANTITIES)):
            match = re.fullmatch(rf"{pattern}(_px|_um2|_um)?", name)
        else:
            match = re.fullmatch(rf"{pattern}_(?:mean|std)()", name)
        if match is None:
            continue
        if "px" in unit and "," in unit:
            if not match[1]:
                continue
            return ("px" if match[1] == "_px" else _SUFFIX[match[1]]), meaning
        return unit, meaning
    raise KeyError(name)
