"""Image files to arrays, and labs' folders to checked datasets."""

from microseg.data.checks import LabCheck, Refusal, check_lab_files
from microseg.data.dataset import Lab, open_lab
from microseg.data.images import IGNORE, IMAGE_SUFFIXES, image_digest, image_mpp, read_image, read_mask, write_png
from microseg.data.ingest import PreparedLab, prepare_lab
from microseg.data.lab import LabCard, check_lab_name, read_lab_card, write_lab_card
from microseg.data.manifest import ManifestRow, Split, read_manifest, write_manifest
from microseg.data.splits import assign_splits

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
