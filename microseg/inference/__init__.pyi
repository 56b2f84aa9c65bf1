from .batch import plan_batch, segment_batch, segment_file, segment_part
from .drift import image_drift, slide_drift
from .engine import Engine, segment_image, weights_digest
from .measurements import OBJECT_COLUMNS, measure_objects, summarise_image
from .options import HALO, SLIDE_MEGAPIXELS, TILE, BatchOptions, Sizes
from .outlines import feature_collection, label_objects, outline_objects
from .outputs import OUTPUTS, SUFFIXES, file_sha256
from .overlay import draw_overlay, draw_panel
from .palette import class_colour
from .record import Provenance, Record, read_record
from .segmentation import Segmentation
from .slide import segment_slide, slide_rows
from .tables import BatchSummary, Job, Outcome, finish_batch
from .tiling import Span, Tile, TilePlan, cut_tile, plan_tiles

__all__ = [
    "HALO",
    "OBJECT_COLUMNS",
    "OUTPUTS",
    "SLIDE_MEGAPIXELS",
    "SUFFIXES",
    "TILE",
    "BatchOptions",
    "BatchSummary",
    "Engine",
    "Job",
    "Outcome",
    "Provenance",
    "Record",
    "Segmentation",
    "Sizes",
    "Span",
    "Tile",
    "TilePlan",
    "class_colour",
    "cut_tile",
    "draw_overlay",
    "draw_panel",
    "feature_collection",
    "file_sha256",
    "finish_batch",
    "image_drift",
    "label_objects",
    "measure_objects",
    "outline_objects",
    "plan_batch",
    "plan_tiles",
    "read_record",
    "segment_batch",
    "segment_file",
    "segment_image",
    "segment_part",
    "segment_slide",
    "slide_drift",
    "slide_rows",
    "summarise_image",
    "weights_digest",
]
