"""From images to masks, outlines and measurements: tiles, engine, outputs, batches."""

from microseg.inference.batch import SLIDE_MEGAPIXELS, plan_batch, segment_batch, segment_file, segment_part
from microseg.inference.engine import Engine, segment_image, weights_digest
from microseg.inference.folding import fold_batch_norm
from microseg.inference.measurements import OBJECT_COLUMNS, measure_objects, summarise_image
from microseg.inference.outlines import feature_collection, label_objects, outline_objects
from microseg.inference.outputs import OUTPUTS, SUFFIXES, file_sha256
from microseg.inference.overlay import draw_overlay, draw_panel
from microseg.inference.palette import class_colour
from microseg.inference.record import Provenance, Record, read_record
from microseg.inference.segmentation import Segmentation
from microseg.inference.slide import segment_slide, slide_rows
from microseg.inference.tables import BatchSummary, Job, Outcome, finish_batch
from microseg.inference.tiling import Span, Tile, TilePlan, cut_tile, plan_tiles

__all__ = [
    "OBJECT_COLUMNS",
    "OUTPUTS",
    "SLIDE_MEGAPIXELS",
    "SUFFIXES",
    "BatchSummary",
    "Engine",
    "Job",
    "Outcome",
    "Provenance",
    "Record",
    "Segmentation",
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
    "fold_batch_norm",
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
    "slide_rows",
    "summarise_image",
    "weights_digest",
]
