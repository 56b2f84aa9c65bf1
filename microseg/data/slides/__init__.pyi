from .files import SLIDE_SUFFIXES, slide_parts
from .opening import image_pixels, is_slide, open_slide
from .slide import ArraySlide, Level, Slide
from .tissue_map import TissueMap, find_tissue
from .view import SlideView

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
    "slide_parts",
]
