"""Frame-difference motion energy, one number per token (paper: fdiff and its norm in the motion-weighted loss)."""

import cv2
import numpy as np


def motion_energy(video: np.ndarray, tubelet_size: tuple[int, int, int]) -> np.ndarray:
    """||fdiff||_2 over each token's pixels, with fdiff = |I_tau - I_(tau-1)| between neighbouring sampled frames.

    The first sampled frame has no predecessor. It gets the difference of the second, so that every token sums over
    equally many differences [ours]. The loss applies pixel scale, temperature and normalisation.

    Args:
      video: uint8[..., T, H, W, 3], as the model will see it (cropped and resized).
      tubelet_size: (t, h, w) of one token; must divide (T, H, W).

    Returns:
      float32[..., N], tokens flattened in the order time, height, width; unit: grey levels of [0, 255].
    """
    *batch, num_frames, height, width, channels = video.shape
    t, h, w = tubelet_size
    if num_frames == 1:
        return np.zeros((*batch, (height // h) * (width // w)), np.float32)
    row = width * channels  # bytes of a row of pixels
    flat = video.reshape(-1, height * row)  # (B T, H W3)
    # In one call, so also between the last frame of a clip and the first of the next; that row is overwritten below.
    difference = cv2.absdiff(flat[1:], flat[:-1]).reshape(-1, h * row)  # ((B T - 1) nh, h W3)
    squared = np.zeros((len(flat) * height // h, row), np.float32)  # (B T nh, W3)
    of_later = squared[height // h :]
    for first in range(0, h * row, row):  # one row of pixels of all tokens: few calls, and sums fit the cache
        cv2.accumulateSquare(difference[:, first : first + row], of_later)
    of_frames = squared.reshape(-1, num_frames, height // h * row)  # (B, T, nh W3)
    of_frames[:, 0] = of_frames[:, 1]
    of_rows = of_frames.reshape(-1, t, height // h * row).sum(axis=1)  # (B nt, nh W3)
    of_tokens = of_rows.reshape(-1, w * channels).sum(axis=1)  # (B N,)
    return np.sqrt(of_tokens).reshape(*batch, -1)  # (..., N)
