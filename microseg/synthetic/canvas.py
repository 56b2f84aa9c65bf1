"""Drawing in microns: noise, points and ellipses on a sampled plane, from one random generator."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft
from skimage import measure

__all__ = ["Canvas", "FloatMap", "Points", "soft_step"]

FloatMap = npt.NDArray[np.float32]
"""One value per sample, (H, W)."""
Points = npt.NDArray[np.int64]
"""Row and column of samples, (N, 2)."""


def soft_step(x: npt.NDArray[np.floating]) -> FloatMap:
    """Step from 0 to 1 over -0.5..0.5."""
    step: FloatMap = np.clip(x + 0.5, 0.0, 1.0).astype(np.float32)
    return step


@dataclass(frozen=True)
class Canvas:
    """A plane of samples.

    Args:
        shape: Height and width, in samples.
        pixel: Side of a sample, in microns. All lengths below are microns too.
        rng: Random generator; drawing advances it.
    """

    shape: tuple[int, int]
    pixel: float
    rng: np.random.Generator

    @property
    def square_millimeters(self) -> float:
        """Area of the plane."""
        return self.shape[0] * self.shape[1] * self.pixel**2 / 1e6

    def noise(self, scale: float) -> FloatMap:
        """White noise filtered by a Gaussian of standard deviation ``scale``, with mean 0 and standard deviation 1."""
        spectrum = fft.rfft2(self.rng.standard_normal(self.shape, dtype=np.float32))
        for frequency in (fft.fftfreq(self.shape[0])[:, None], fft.rfftfreq(self.shape[1])[None]):
            spectrum *= np.exp(-2.0 * np.square(np.pi * scale / self.pixel * frequency)).astype(np.float32)
        spectrum[0, 0] = 0.0
        field: FloatMap = fft.irfft2(spectrum, s=self.shape)
        field /= field.std() + np.float32(1e-6)
        return field

    def fibers(self, along: FloatMap, length: float = 7.0, width: float = 0.7) -> FloatMap:
        """Anisotropic noise with mean 0 and standard deviation 1, elongated in the local direction ``along`` (radians).

        A blend of six fields of fixed direction, weighted by the angle to the local direction.
        """
        spectrum = fft.rfft2(self.rng.standard_normal(self.shape, dtype=np.float32))
        fy = fft.fftfreq(self.shape[0]).astype(np.float32)[:, None] * np.float32(np.sqrt(2) * np.pi / self.pixel)
        fx = fft.rfftfreq(self.shape[1]).astype(np.float32)[None] * np.float32(np.sqrt(2) * np.pi / self.pixel)
        cosine, sine = np.cos(along), np.sin(along)
        total, weight = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.float32)
        for angle in np.arange(6, dtype=np.float32) * np.float32(np.pi / 6):
            c, s = np.cos(angle), np.sin(angle)
            window = np.exp(-np.square(length * (fx * c + fy * s)) - np.square(width * (fy * c - fx * s)))
            share = np.square(cosine * c + sine * s)
            share *= share * share
            share *= share  # cos^12 of the angle between: neighboring fields just overlap
            total += share * fft.irfft2(spectrum * window, s=self.shape)
            weight += share * share
        total /= np.sqrt(weight)
        total -= total.mean()
        total /= total.std() + np.float32(1e-6)
        return total

    def along_contours(self, height: FloatMap, level: float, spacing: float, keep: float) -> Points:
        """Points about ``spacing`` apart along the contours of ``height`` at ``level``; a fraction ``keep`` of them."""
        spots = [np.zeros((0, 2))]
        step = max(1, round(1.0 / self.pixel))  # contours are smooth: one micron is sufficient
        lines: list[npt.NDArray[np.float64]] = measure.find_contours(height[::step, ::step], level)  # type: ignore[no-untyped-call]
        for line in lines:
            travelled = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))]) * self.pixel * step
            stops = np.arange(0.0, travelled[-1], spacing)
            stops = (stops + self.rng.normal(0.0, 0.18 * spacing, len(stops)))[self.rng.random(len(stops)) < keep]
            spots.append(np.stack([np.interp(stops, travelled, line[:, axis]) for axis in (0, 1)], axis=1) * step)
        points = np.concatenate(spots)
        return self._samples(points + self.rng.normal(0.0, 0.9 / self.pixel, points.shape))

    def scatter(self, where: npt.NDArray[np.bool_], density: float) -> Points:
        """Random points within ``where``, ``density`` per square millimeter."""
        count = self.rng.poisson(density * self.square_millimeters)
        return _within(self.rng.integers(0, self.shape, (count, 2)), where)

    def clusters(self, where: npt.NDArray[np.bool_], density: float) -> Points:
        """Clusters of 10 to 70 points within ``where``, ``density`` clusters per square millimeter."""
        centers = self.rng.uniform(0, self.shape, (self.rng.poisson(density * self.square_millimeters), 2))
        clouds = [np.zeros((0, 2))]
        for center in centers:
            spread = self.rng.uniform(8.0, 24.0) / self.pixel
            clouds.append(center + self.rng.normal(0.0, spread, (self.rng.integers(10, 70), 2)))
        return _within(self._samples(np.concatenate(clouds)), where)

    def ellipses(
        self,
        spots: Points,
        along: FloatMap,
        size: tuple[float, float],
        turn: float = 0.25,
        strength: tuple[float, float] = (0.65, 1.0),
    ) -> FloatMap:
        """Coverage by slightly bent ellipses; where they overlap, the maximum.

        Args:
            spots: Their centers.
            along: Direction of their length at each sample (radians).
            size: Length and width; each varies by about 13 %.
            turn: Standard deviation of their turn away from ``along`` (radians).
            strength: Range of the coverage at their rim; the center is slightly weaker.

        Returns:
            Coverage, 0..1.
        """
        cover = np.zeros(self.shape, np.float32)
        count = len(spots)
        vary = np.exp(self.rng.normal(0.0, 0.13, (2, count, 1, 1))).astype(np.float32)
        half_length, half_width = size[0] / 2 * vary[0], size[1] / 2 * vary[1]
        angle = (along[tuple(spots.T)] + self.rng.normal(0.0, turn, count)).astype(np.float32)[:, None, None]
        full = self.rng.uniform(*strength, (count, 1, 1)).astype(np.float32)
        bend = self.rng.normal(0.0, 0.03, (count, 1, 1)).astype(np.float32)
        reach = int(np.ceil(max(size) * 0.66 / self.pixel))
        offsets = np.arange(-reach, reach + 1)
        y, x = offsets[:, None] * np.float32(self.pixel), offsets[None] * np.float32(self.pixel)  # (k, 1), (1, k)
        lengthwise = x * np.cos(angle) + y * np.sin(angle)  # (N, k, k)
        across = y * np.cos(angle) - x * np.sin(angle) + bend * np.square(lengthwise)
        radius = np.sqrt(np.square(lengthwise / half_length) + np.square(across / half_width))
        patch = full * soft_step((1.0 - radius) * half_width / self.pixel) * (0.8 + 0.2 * np.minimum(radius, 1.0))
        rows = (spots[:, 0, None, None] + offsets[:, None]).clip(0, self.shape[0] - 1)
        columns = (spots[:, 1, None, None] + offsets[None]).clip(0, self.shape[1] - 1)
        covered = patch > 0
        np.maximum.at(cover.reshape(-1), (rows * self.shape[1] + columns)[covered], patch[covered])
        return cover

    def _samples(self, points: npt.NDArray[np.float64]) -> Points:
        """Points within the plane, rounded to samples."""
        rounded = np.round(points).astype(np.int64)
        return rounded[np.all((rounded >= 0) & (rounded < self.shape), axis=1)]


def _within(points: Points, where: npt.NDArray[np.bool_]) -> Points:
    kept: Points = points[where[tuple(points.T)]]
    return kept
