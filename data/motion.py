"""Frame-difference motion energy, one number per token (paper: fdiff and its norm in the motion-weighted loss)."""

import cv2
import numpy as np


def motion_energy(video: np.ndarray, tubelet_size: tuple[int, int, int]) -> np.ndarray:
    """||fdiff||_2 over each token's pixels, with fdiff = |I_tau - I_(tau-1)| between neighbouring sampled frames.

    The first sampled frame has no predecessor: it takes the difference of the second, so that every token sums over
    equally many differences [ours]. The scale of the pixels, the temperature and the normalisation belong to the loss.

    Args:
      video: uint8[T, H, W, 3], as the model will see it (cropped and resized).
      tubelet_size: (t, h, w) of one token; must divide (T, H, W).

    Returns:
      float32[N], tokens flattened in the order time, height, width; unit: grey levels of [0, 255].
    """
    num_frames, height, width, channels = video.shape
    t, h, w = tubelet_size
    if num_frames == 1:
        return np.zeros((height // h) * (width // w), np.float32)
    flat = video.reshape(num_frames, height, width * channels)  # (T, H, W3)
    difference = np.empty(flat.shape[1:], np.uint8)
    squared = np.zeros((num_frames // t, height, width * channels), np.float32)
    for index in range(num_frames):  # one frame at a time, which stays in the processor's cache
        later = max(index, 1)
        cv2.absdiff(flat[later], flat[later - 1], dst=difference)
        cv2.accumulateSquare(difference, squared[index // t])
    of_rows = squared.reshape(-1, h, width * channels).sum(axis=1)  # (nt nh, W3)
    of_tokens = of_rows.reshape(num_frames // t, height // h, width // w, w * channels).sum(axis=-1)  # (nt, nh, nw)
    return np.sqrt(of_tokens).reshape(-1)  # (N,)
