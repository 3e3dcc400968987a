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
    flat = video.reshape(num_frames, height * width * channels)  # (T, HW3)
    difference = cv2.absdiff(flat[1:], flat[:-1])  # (T - 1, HW3)
    difference = np.concatenate([difference[:1], difference])  # (T, HW3)
    squared = np.square(difference, dtype=np.float32)
    squared = squared.reshape(num_frames // t, t, height // h, h, width // w, w * channels)  # (nt, t, nh, h, nw, w3)
    return np.sqrt(np.einsum("atbhcw->abc", squared)).reshape(-1)  # (N,)
