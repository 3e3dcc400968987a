"""Calibrated pinhole cameras in OpenCV's convention.

pixel = K (R X + t); x right, y down, z forwards; pixel centres at integers.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera."""

    intrinsics: np.ndarray  # K, float64[3, 3], in pixels, square pixels without skew
    rotation: np.ndarray  # R, float64[3, 3], world to camera
    translation: np.ndarray  # t, float64[3], metres

    @property
    def centre(self) -> np.ndarray:
        """The camera's position in the world, float64[3], metres."""
        return -self.rotation.T @ self.translation

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points float[..., 3] in metres -> pixels (x, y) float64[..., 2] and depth in metres float64[...]."""
        local = points @ self.rotation.T + self.translation
        image = local @ self.intrinsics.T
        return image[..., :2] / image[..., 2:], local[..., 2]

    def scaled(self, factor: int) -> "Camera":
        """The same camera with `factor` times as many pixels each way; pixel centres stay at integers."""
        intrinsics = self.intrinsics.copy()
        intrinsics[:2] *= factor
        intrinsics[:2, 2] += (factor - 1) / 2
        return dataclasses.replace(self, intrinsics=intrinsics)


def look_at(position: np.ndarray, target: np.ndarray, focal_pixels: float, width: int, height: int) -> Camera:
    """A level camera at `position` (metres, world z up) with `target` in the middle of its image."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    intrinsics = np.array([[focal_pixels, 0, (width - 1) / 2], [0, focal_pixels, (height - 1) / 2], [0, 0, 1]])
    return Camera(intrinsics=intrinsics, rotation=rotation, translation=-rotation @ position)
