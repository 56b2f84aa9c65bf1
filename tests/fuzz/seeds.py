"""Small sound files of every kind that microseg reads; the fuzz test damages them."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

__all__ = ["SEEDS"]

_OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image '
    'ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="24" SizeY="16" SizeC="3" SizeZ="1" '
    'SizeT="1" PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5"><Channel ID="Channel:0:0" '
    'SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
)


def _pixels(*shape: int, dtype: str = "uint8", below: int = 256) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, below, shape).astype(dtype)


def _pillow(array: npt.NDArray[Any], kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=kind, **options)
    return file.getvalue()


def _tiff(array: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def _pyramid() -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=True) as tiff:
        options: dict[str, Any] = {"tile": (16, 16), "photometric": "rgb", "compression": "zlib"}
        tiff.write(_pixels(64, 64, 3), subifds=1, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
        tiff.write(_pixels(32, 32, 3), subfiletype=1, **options)
    return file.getvalue()


def _palette() -> bytes:
    image = Image.fromarray(_pixels(16, 24, below=3))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    file = io.BytesIO()
    image.save(file, format="PNG", dpi=(50800, 50800))
    return file.getvalue()


def _images() -> list[tuple[str, bytes]]:
    exif = Image.Exif()
    exif[274] = 6
    return [
        ("a.png", _pillow(_pixels(16, 24, 3), "PNG")),
        ("a.png", _pillow(_pixels(16, 24, 4), "PNG")),
        ("a.png", _pillow(_pixels(16, 24, dtype="uint16", below=65536), "PNG")),
        ("a.png", _palette()),
        ("a.jpg", _pillow(_pixels(16, 24, 3), "JPEG", exif=exif)),
        ("a.bmp", _pillow(_pixels(16, 24, 3), "BMP")),
        ("a.tif", _pillow(_pixels(16, 24, 3), "TIFF", compression="tiff_lzw")),
        ("a.tif", _tiff(_pixels(16, 24, 3), photometric="rgb", tile=(16, 16), compression="zlib")),
        ("a.tif", _tiff(_pixels(16, 24, dtype="uint16", below=4096))),
        ("a.tif", _tiff(_pixels(16, 24).astype("float32") / 255)),
        ("a.tif", _tiff(_pixels(3, 16, 24), imagej=True, metadata={"unit": "um"}, resolution=(2, 2))),
        ("a.ome.tif", _tiff(_pixels(16, 24, 3), photometric="rgb", description=_OME.encode(), metadata=None)),
    ]


def _channels() -> list[tuple[str, bytes]]:
    deep, names = _pixels(4, 16, 24, dtype="uint16", below=4096), ["CD44", "DAPI", "PanCK", "CD3"]
    metadata = {"axes": "CYX", "Channel": {"Name": names}}
    return [
        ("a.ome.tif", _tiff(deep, photometric="minisblack", metadata=metadata)),
        ("a.tif", _tiff(deep, photometric="minisblack", planarconfig="separate", compression="zlib")),
        ("a.tif", _tiff(deep, imagej=True, metadata={"axes": "CYX", "Labels": names})),
        ("a.tif", _tiff(_pixels(4, 16, 24), photometric="minisblack")),
        *_images()[:-2],
    ]


def _slides() -> list[tuple[str, bytes]]:
    svs = _tiff(
        _pixels(64, 64, 3),
        photometric="rgb",
        tile=(32, 32),
        compression="jpeg",
        description="Aperio Image Library v11\n64x64 |AppMag = 20|MPP = 0.5",
        metadata=None,
    )
    index = b"[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=a.jpg\n"
    return [("a.svs", svs), ("a.tif", _pyramid()), ("a.vms", index), ("a.mrxs", b"\xff\xd8\xff"), *_images()]


def _masks() -> list[tuple[str, bytes]]:
    return [
        ("masks/a.png", _pillow(_pixels(16, 24, below=2), "PNG")),
        ("masks/a.png", _palette()),
        ("masks/a.tif", _tiff(_pixels(16, 24, below=2), compression="zlib")),
        ("masks/a.bmp", _pillow(_pixels(16, 24, below=2), "BMP")),
    ]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_RING = [[1.0, 1.0], [9.5, 1.0], [9.5, 8.0], [1.0, 8.0], [1.0, 1.0]]


def _annotations() -> list[tuple[str, bytes]]:
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [_RING]},
        "properties": {"classification": {"name": "gland", "color": [1, 2, 3]}, "isEllipse": False},
    }
    multi = {**feature, "geometry": {"type": "MultiPolygon", "coordinates": [[_RING], [_RING]]}}
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 24, "height": 16}],
        "categories": [{"id": 1, "name": "gland"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 8]], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 1,
                "category_id": 1,
                "segmentation": {"size": [16, 24], "counts": [100, 20, 264]},
                "iscrowd": 1,
            },
        ],
    }
    labelme = {
        "version": "5.0",
        "shapes": [{"label": "gland", "points": _RING[:4], "shape_type": "polygon"}],
        "imagePath": "a.png",
        "imageWidth": 24,
        "imageHeight": 16,
    }
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in _RING)
    scope = (
        '<?xml version="1.0"?><Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="gland" Type="4"><Regions>'
        f'<Region Id="1" Type="0" NegativeROA="0"><Vertices>{vertices}</Vertices></Region></Regions></Annotation>'
        "</Annotations>"
    )
    coordinates = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(_RING))
    asap = (
        '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="1" Type="Polygon" '
        f'PartOfGroup="gland"><Coordinates>{coordinates}</Coordinates></Annotation></Annotations></ASAP_Annotations>'
    )
    return [
        ("annotations/a.geojson", _json({"type": "FeatureCollection", "features": [feature, multi]})),
        ("annotations/a.json", _json(coco)),
        ("annotations/a.json", _json(labelme)),
        ("annotations/a.xml", scope.encode()),
        ("annotations/a.xml", asap.encode()),
    ]


_LAB = b"""lab: north
stain: H&E
classes: [background, gland]
mpp: 0.5
tissue: human colon
scanner: null
channels: {nuclei: {from: [DAPI, 3], range: [[10, 4000], [0, 255]]}, membrane: 2}
"""

_TABLE = b"file,group,mpp\na.png,p1,0.5\nb.png,p2,0.25\n"

_MANIFEST = b"image,mask,group,split,width,height,mpp,sha256\nimages/a.png,masks/a.png,p,train,24,16,0.5," + b"0" * 64

_PARAMS = b"""seed: 1
train: {steps: 10, learning_rate: 1e-3}
network:
  encoder: blocks
  channels: [8, 16]
inference: {outputs: [labels, objects]}
"""

_RECORD = {
    "name": "a",
    "source": "/data/a.png",
    "source_sha256": "0" * 64,
    "width": 24,
    "height": 16,
    "mpp": 0.5,
    "step": [1.0, 1.0],
    "classes": ["background", "gland"],
    "provenance": {"model": "m/1", "datasets": {"lab_a": "x.dir"}, "parameters": {"a": 1}},
    "kind": "microseg segmentation 1",
    "outputs": {"labels": "a.labels.tif"},
    "summary": {"objects_gland": 1},
    "created": "2026-01-01T00:00:00Z",
    "seconds": 0.1,
    "software": {"python": "3.11"},
}

_SLIDES = {
    "recipe": {"fields": 4, "microns": 512.0, "seed": 0},
    "slides": [
        {
            "file": "a.svs", "sha256": "0" * 64, "bytes": 10, "width": 100, "height": 50, "mpp": 0.5,
            "levels": [[100, 50], [50, 25]], "tissue_mm2": 0.1, "pen": 0.0, "out_of_focus": 0.0,
        }
    ],
}  # fmt: skip

_HISTORY = b"".join(
    b'{"lab": "north", "digest": "%032d.dir", "files": 3, "bytes": 9, "committed_at": "2026-01-01T00:00:00+00:00", '
    b'"number": %d}\n' % (number, number)
    for number in (1, 2)
)

_DECISION = (
    b"gate=accepted\ngate.production_version=1\n"
    b'gate.rules=[{"outcome": "met", "rule": "source_dice/lab_a", "message": "0.9, required 0.8"}]\n'
)

_ONBOARDING = {"lab": "north", "folder": "/x", "fingerprint": "0", "state": "pending", "attempts": 1}

_REFERENCE = {
    "kind": "microseg reference distribution 1",
    "features": ["a", "b"],
    "labs": {"north": {"images": 3, "center": [0.0, 1.0], "covariance": [[1.0, 0.0], [0.0, 1.0]], "limit": 3.0}},
}

_WEBHOOK = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2026-01-01T00:00:00Z",
    "data": {"name": "microseg-segmenter", "alias": "production", "version": "2"},
}


def _network(name: str) -> Callable[[], list[tuple[str, bytes]]]:
    def create() -> list[tuple[str, bytes]]:
        import tempfile

        import torch

        from microseg.models.config import NetworkConfig
        from microseg.models.files import save_network
        from microseg.models.network import PyramidSegmenter

        torch.manual_seed(0)
        config = NetworkConfig(
            classes=("background", "gland"), encoder="blocks", channels=(4, 4), pyramid_bins=(1,), pyramid_channels=4
        )
        with tempfile.TemporaryDirectory() as folder:
            save_network(Path(folder), PyramidSegmenter(config))
            other = next(file for file in ("weights.safetensors", "network.json") if file != name)
            return [(name, (Path(folder) / name).read_bytes()), (f"={other}", (Path(folder) / other).read_bytes())]

    return create


def _written(write: Callable[[Path], object]) -> list[tuple[str, bytes]]:
    """All files below a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return [(str(path.relative_to(folder)), path.read_bytes()) for path in files]


def _dicom() -> list[tuple[str, bytes]]:
    from tests.microseg.slides.test_dicom_and_zarr import write_dicom

    def write(folder: Path) -> None:
        (folder / "slides" / "case").mkdir(parents=True)
        pixels = _pixels(64, 128, 3)
        for level, name in enumerate(("a.dcm", "b.dcm")):
            part = pixels[:: 2**level, :: 2**level]
            write_dicom(folder / "slides" / "case" / name, part, "1.2.826.0.1.3680043.8.498.1", level=level)

    return _written(write)


def _zarr() -> list[tuple[str, bytes]]:
    from tests.microseg.slides.test_dicom_and_zarr import write_zarr

    def write(folder: Path) -> None:
        for version in (2, 3):
            write_zarr(folder / "slides" / f"{version}.zarr", _pixels(64, 64, 3), version=version)

    return _written(write)


SEEDS: Mapping[str, Callable[[], list[tuple[str, bytes]]]] = {
    "images": _images,
    "channels": _channels,
    "masks": _masks,
    "slides": _slides,
    "annotations": _annotations,
    "lab.yaml": lambda: [("lab.yaml", _LAB)],
    "params.yaml": lambda: [("params.yaml", _PARAMS)],
    "images.csv": lambda: [("images.csv", _TABLE)],
    "manifest.csv": lambda: [("manifest.csv", _MANIFEST)],
    "records": lambda: [("a.json", _json(_RECORD))],
    "slides.json": lambda: [("slides.json", _json(_SLIDES))],
    "history": lambda: [("north.jsonl", _HISTORY)],
    "decision tags": lambda: [("tags", _DECISION)],
    "dicom": _dicom,
    "zarr": _zarr,
    "onboarding": lambda: [("north.json", _json(_ONBOARDING))],
    "reference": lambda: [("reference.json", _json(_REFERENCE))],
    "safetensors": _network("weights.safetensors"),
    "network.json": _network("network.json"),
    "webhooks": lambda: [("body", _json(_WEBHOOK))],
}
"""Files by reader, with their names; a name that begins with ``=`` is written, but not damaged."""
