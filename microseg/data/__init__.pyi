from .checks import LabCheck, Refusal, check_lab_files
from .dataset import Lab, open_lab
from .images import IGNORE, IMAGE_SUFFIXES, image_digest, read_image, read_mask, write_png
from .ingest import PreparedLab, prepare_lab
from .lab import LabCard, check_lab_name, read_lab_card, write_lab_card
from .manifest import ManifestRow, Split, read_manifest, write_manifest
from .resolution import image_mpp
from .splits import assign_splits

__all__ = [
    "IGNORE",
    "IMAGE_SUFFIXES",
    "Lab",
    "LabCard",
    "LabCheck",
    "ManifestRow",
    "PreparedLab",
    "Refusal",
    "Split",
    "assign_splits",
    "check_lab_files",
    "check_lab_name",
    "image_digest",
    "image_mpp",
    "open_lab",
    "prepare_lab",
    "read_image",
    "read_lab_card",
    "read_manifest",
    "read_mask",
    "write_lab_card",
    "write_manifest",
    "write_png",
]
