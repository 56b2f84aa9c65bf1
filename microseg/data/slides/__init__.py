"""Slides: images too large to be held in memory, read region by region."""

from microseg.data.slides.opening import SLIDE_SUFFIXES, image_pixels, is_slide, open_slide
from microseg.data.slides.slide import ArraySlide, Level, Slide
from microseg.data.slides.tissue_map import TissueMap, find_tissue
from microseg.data.slides.view import SlideView

__all__ = [
    "SLIDE_SUFFIXES",
    "ArraySlide",
    "Level",
    "Slide",
    "SlideView",
    "TissueMap",
    "find_tissue",
    "image_pixels",
    "is_slide",
    "open_slide",
]
