"""Frames stored as JPEG files."""

import cv2
import numpy as np
import simplejpeg


def encode(frame: np.ndarray, quality: int) -> bytes:
    """The stored form of a frame.

    Args:
      frame: uint8[h, w, 3], RGB.
      quality: 1 to 100, JPEG's scale; chroma is stored at half the resolution (4:2:0).

    Returns:
      A JPEG file.
    """
    parameters = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), parameters)
    assert encoded, frame.shape
    return data.tobytes()


def decode(data: bytes) -> np.ndarray:
    """The frame, uint8[h, w, 3], RGB, of its stored form. Raises ValueError when the bytes are damaged."""
    try:
        return simplejpeg.decode_jpeg(data)  # OpenCV's pixels, in two thirds of its time
    except ValueError as error:
        raise ValueError(f"{len(data)} bytes are not a JPEG image ({error})") from error
