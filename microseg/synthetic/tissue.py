"""Geometry of a synthetic section of glandular mucosa: maps of its structures, before staining."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from microseg.synthetic.canvas import Canvas, FloatMap, soft_step

__all__ = ["Section", "Tissue", "generate_section"]

_MARGIN = 16.0  # microns generated around the section and cropped, so that structures are not affected by the border
_GLAND, _VESSEL, _FAT = 1, 2, 3  # types of site


@dataclass(frozen=True)
class Tissue:
    """Architecture of the tissue; lengths in microns, densities in a square millimeter.

    Args:
        gland_diameter: Typical width of a gland.
        septum: Least stroma between neighboring glands.
        irregularity: Deviation of the contour from smooth lobes.
        branching: Probability that a gland has further lobes (elongated or branched).
        epithelium_height: Height of the epithelial cells, from contour to lumen.
        nucleus_spacing: Distance of epithelial nuclei along the contour.
        nucleus_size: Length and width of an epithelial nucleus.
        stratification: Probability of a nucleus in a second row.
        goblet_fraction: Probability that a cell of a secreting gland has a mucus vacuole.
        stromal_nuclei: Spindle nuclei in the stroma, per area.
        infiltrates: Lymphocyte clusters, per area.
        vessels: Fraction of sites that are a vessel or fat cell instead of a gland: white, but not a lumen.
        clefts: Fraction of the section that is torn by the preparation (white).
        glands: Fraction of the sites for a gland that hold one; stroma fills the others.
    """

    gland_diameter: float = 78.0
    septum: float = 9.0
    irregularity: float = 5.0
    branching: float = 0.45
    epithelium_height: float = 17.0
    nucleus_spacing: float = 5.2
    nucleus_size: tuple[float, float] = (9.0, 4.4)
    stratification: float = 0.25
    goblet_fraction: float = 0.4
    stromal_nuclei: float = 2600.0
    infiltrates: float = 14.0
    vessels: float = 0.18
    clefts: float = 0.02
    glands: float = 1.0


@dataclass(frozen=True)
class Section:
    """Maps of a section, all (H, W). Coverages are 0..1; textures have mean 0 and a standard deviation of about 1."""

    gland: npt.NDArray[np.int32]  # 0 = outside, else the gland's number
    epithelium: FloatMap  # the whole gland; the lumen is composited over it
    lumen: FloatMap
    secretion: FloatMap  # mucus and debris in the lumen
    goblet: FloatMap
    wall: FloatMap  # of vessels and fat cells
    gap: FloatMap  # white in the stroma: inside of vessels and fat cells, clefts
    red_cells: FloatMap
    epithelial_nuclei: FloatMap
    stromal_nuclei: FloatMap
    fibers: FloatMap
    fine: FloatMap
    medium: FloatMap
    coarse: FloatMap


def generate_section(tissue: Tissue, shape: tuple[int, int], pixel: float, rng: np.random.Generator) -> Section:
    """Generate the maps of one section.

    Args:
        tissue: The architecture.
        shape: Height and width, in samples.
        pixel: Side of a sample, in microns.
        rng: Random generator.

    Returns:
        The maps of the section.
    """
    margin = round(_MARGIN / pixel)
    canvas = Canvas((shape[0] + 2 * margin, shape[1] + 2 * margin), pixel, rng)
    textures = {name: canvas.noise(scale) for name, scale in (("fine", 0.7), ("medium", 3.0), ("coarse", 28.0))}
    site, kind = _map_sites(tissue, canvas)
    inward = ndimage.distance_transform_edt(site > 0).astype(np.float32) * np.float32(pixel)
    outward = ndimage.distance_transform_edt(site == 0).astype(np.float32) * np.float32(pixel)
    down, right = np.gradient(ndimage.gaussian_filter(inward - outward, 2.0 / pixel))
    along = np.arctan2(down, right) + np.float32(np.pi / 2)  # direction of the nearest contour

    maps = textures | _glands(tissue, canvas, site, kind, inward, along, textures)
    maps |= _stroma(tissue, canvas, kind[site], inward, outward, along, textures)
    window = (slice(margin, margin + shape[0]), slice(margin, margin + shape[1]))
    cut = {name: np.ascontiguousarray(each[window], dtype=np.float32) for name, each in maps.items()}
    return Section(gland=np.where(kind[site] == _GLAND, site, 0)[window].astype(np.int32), **cut)


def _glands(
    tissue: Tissue,
    canvas: Canvas,
    site: npt.NDArray[np.int32],
    kind: npt.NDArray[np.int32],
    inward: FloatMap,
    along: FloatMap,
    textures: dict[str, FloatMap],
) -> dict[str, FloatMap]:
    """From the contour inwards: palisades of basal nuclei, cytoplasm with mucus vacuoles, lumen."""
    rng, inside = canvas.rng, kind[site] == _GLAND
    depth = np.where(inside, inward, 0.0).astype(np.float32)
    tall, rich = rng.uniform([[0.8], [0.1]], [[1.25], [1.0]], (2, len(kind))).astype(np.float32)  # one per gland
    height = tissue.epithelium_height * tall[site] * (1.0 + 0.14 * canvas.noise(7.0)) + 0.5 * textures["medium"]
    lumen = soft_step((depth - height) / 1.2)
    secretion = lumen * soft_step(0.8 * textures["coarse"] + 0.5 * textures["medium"] - 0.9) * rich[site]

    radial = along + np.float32(np.pi / 2)
    rows = ((0.31, 1.0), (0.58, tissue.stratification))
    basal = [
        canvas.along_contours(depth, level * tissue.epithelium_height, tissue.nucleus_spacing, keep)
        for level, keep in rows
    ]
    nuclei = canvas.ellipses(np.concatenate(basal), radial, tissue.nucleus_size)
    secreting = rng.random(len(kind)) < 0.55
    vacuoles = canvas.along_contours(depth, 0.74 * tissue.epithelium_height, 7.5, tissue.goblet_fraction)
    vacuoles = vacuoles[secreting[site[tuple(vacuoles.T)]]]
    goblet = canvas.ellipses(vacuoles, radial, (10.5, 7.5), turn=0.1, strength=(0.9, 1.0))
    within = inside * (1.0 - lumen)
    return {
        "epithelium": soft_step(depth / 1.2 - 0.5) * inside,
        "lumen": lumen,
        "secretion": secretion,
        "goblet": goblet * within,
        "epithelial_nuclei": nuclei * within,
    }


def _stroma(
    tissue: Tissue,
    canvas: Canvas,
    kind: npt.NDArray[np.int32],
    inward: FloatMap,
    outward: FloatMap,
    along: FloatMap,
    textures: dict[str, FloatMap],
) -> dict[str, FloatMap]:
    """Between the glands: fibers, vessels with or without blood, fat cells, clefts, spindle cells, lymphocytes."""
    fibers = canvas.fibers(along + np.float32(0.6) * canvas.noise(22.0))
    vessel = kind == _VESSEL
    hollow = vessel & (inward > 5.0 + textures["medium"]) | (kind == _FAT) & (inward > 1.3)
    tear = canvas.noise(9.0) + np.float32(0.8) * fibers
    cleft = soft_step((tear - np.quantile(tear, 1.0 - tissue.clefts)) * 4.0) * soft_step(outward - 1.0)
    gap = np.maximum(ndimage.gaussian_filter(hollow.astype(np.float32), 0.4 / canvas.pixel), cleft)
    bloody = hollow & vessel & (textures["coarse"] > 0)
    red_cells = canvas.ellipses(canvas.scatter(bloody, 11000.0), along, (6.5, 5.5)) * hollow

    free = (outward > 2.5) & (gap < 0.3)
    spindle = canvas.ellipses(canvas.scatter(free, tissue.stromal_nuclei), along, (11.0, 3.0))
    round_spots = np.concatenate([canvas.scatter(free, 500.0), canvas.clusters(free, tissue.infiltrates)])
    lymphocytes = canvas.ellipses(round_spots, along, (6.0, 5.6))
    lining = canvas.along_contours(np.where(vessel, inward, 0.0).astype(np.float32), 2.5, 14.0, 0.8)
    flat = canvas.ellipses(lining, along, (9.0, 2.6))
    return {
        "fibers": fibers,
        "wall": ((kind > _GLAND) & ~hollow).astype(np.float32),
        "gap": gap,
        "red_cells": red_cells,
        "stromal_nuclei": np.maximum(np.maximum(spindle, lymphocytes), flat) * (kind != _GLAND),
    }


def _map_sites(tissue: Tissue, canvas: Canvas) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Map of sites (0 = stroma) and the type of each: lobed shapes, warped by noise, separated by septa."""
    sites, kind = _sample_sites(tissue, canvas)
    step = max(1, round(1.0 / canvas.pixel))  # contours are smooth: one micron is sufficient
    height, width = canvas.shape
    rough = Canvas(((height - 1) // step + 2, (width - 1) // step + 2), canvas.pixel * step, canvas.rng)
    y, x = np.indices(rough.shape, dtype=np.float32) * np.float32(rough.pixel)
    for axis in (y, x):
        axis += tissue.irregularity * (rough.noise(14.0) + np.float32(0.3) * rough.noise(5.0))

    first = np.full(rough.shape, -1e3, np.float32)  # microns inside the site that holds the sample
    second = first.copy()  # the same of the second nearest site
    site = np.zeros(rough.shape, np.int32)
    for number, circles in enumerate(sites, start=1):
        low = ((circles[:, :2] - circles[:, 2:]).min(axis=0) - 24.0) / rough.pixel
        high = ((circles[:, :2] + circles[:, 2:]).max(axis=0) + 24.0) / rough.pixel
        box = tuple(slice(max(int(a), 0), max(int(b) + 1, 0)) for a, b in zip(low, high, strict=True))
        if first[box].size == 0:
            continue
        inward = np.stack([radius - np.hypot(y[box] - cy, x[box] - cx) for cy, cx, radius in circles])
        level = 4.0 * np.logaddexp.reduce(inward / 4.0, axis=0)  # smooth union of the lobes
        ahead = level > first[box]
        second[box] = np.where(ahead, first[box], np.maximum(second[box], level))
        first[box] = np.where(ahead, level, first[box])
        site[box] = np.where(ahead, number, site[box])
    level = ndimage.gaussian_filter(np.minimum(first, (first - second - tissue.septum) / 2), 1.0 / rough.pixel)
    rows, columns = np.arange(height) / step, np.arange(width) / step
    owner = site[np.round(rows).astype(int)][:, np.round(columns).astype(int)]
    return np.where(_interpolate(level, rows, columns) > 0, owner, 0), kind


def _sample_sites(tissue: Tissue, canvas: Canvas) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.int32]]:
    """Circles (y, x, radius; microns) of each site by random sequential addition; and the types of the sites."""
    rng, reach = canvas.rng, 0.6 * tissue.gland_diameter
    extent = np.array(canvas.shape) * canvas.pixel
    tries = int(12 * np.prod(extent + 2 * reach) / tissue.gland_diameter**2)
    sites: list[npt.NDArray[np.float64]] = []
    kinds = [0]
    taken = np.zeros((0, 3))
    for attempt in range(tries):
        chance = rng.random()
        kind = _GLAND if chance > tissue.vessels else _VESSEL if chance > 0.4 * tissue.vessels else _FAT
        radius = tissue.gland_diameter / 2 * np.exp(rng.normal(0.0, 0.16))
        radius *= 1.0 - 0.4 * attempt / tries  # large ones first, then small ones in the gaps
        circle = np.array([*rng.uniform(-reach, extent + reach), radius])
        lobes, heading = [circle], rng.uniform(0.0, 2 * np.pi)
        if kind != _GLAND:
            circle[2] *= rng.uniform(0.35, 0.75)
        else:
            further = int(rng.random() < tissue.branching) + int(rng.random() < 0.4 * tissue.branching)
            circle[2] *= (1.0, 0.8, 0.72)[further]
            for _ in range(further):
                heading += rng.normal(0.0, 0.8)
                step = circle[2] * rng.uniform(0.9, 1.3) * np.array([np.sin(heading), np.cos(heading)])
                lobes.append(np.array([*(lobes[-1][:2] + step), circle[2] * rng.uniform(0.75, 1.05)]))
        circles = np.stack(lobes)
        apart = np.hypot(*(circles[:, None, :2] - taken[None, :, :2]).transpose(2, 0, 1))
        if np.all(apart > 0.82 * (circles[:, None, 2] + taken[None, :, 2]) + tissue.septum):
            sites.append(circles)
            kinds.append(kind)
            taken = np.vstack([taken, circles])
    if tissue.glands < 1.0:
        kept = [kind != _GLAND or rng.random() < tissue.glands for kind in kinds[1:]]
        sites = [site for site, keep in zip(sites, kept, strict=True) if keep]
        kinds = [0, *(kind for kind, keep in zip(kinds[1:], kept, strict=True) if keep)]
    return sites, np.array(kinds, dtype=np.int32)


def _interpolate(values: FloatMap, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> FloatMap:
    """Bilinear interpolation on the grid of rows and columns."""
    y, x = rows.astype(int), columns.astype(int)
    down, right = (rows - y)[:, None].astype(np.float32), (columns - x)[None].astype(np.float32)
    between = values[y] * (1 - down) + values[y + 1] * down
    blend: FloatMap = between[:, x] * (1 - right) + between[:, x + 1] * right
    return blend
