"""Preprocessing for transformers: chooses and crops frames as in this model's training.

The folder's configs name the class, so that `trust_remote_code=True` takes it:

    AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    pipeline("video-classification", model=FOLDER, trust_remote_code=True)

It needs transformers, NumPy and Pillow, and PyAV to read video files.
"""

import os

import numpy as np
from transformers import VideoMAEImageProcessorPil
from transformers.image_utils import SizeDict


class MV2MAEProcessor(VideoMAEImageProcessorPil):
    """Image processor and video processor in one. `preprocessor_config.json` sets the attributes.

    Attributes:
      num_frames: of a clip.
      frame_stride: distance of a clip's frames, in frames of the video.
      crop_size: height and width of the model's clips.
    """

    num_frames = 16
    frame_stride = 1

    def __call__(self, videos, *, do_sample_frames=None, num_frames=None, frame_stride=None, **kwargs):
        """Normalised clips: `pixel_values` (B, T, 3, H, W).

        Args:
          videos: a clip as a list of T frames uint8[h, w, 3] or as uint8[T, h, w, 3], RGB; or a list of clips; or the
            path of a video file, or a list of paths.
          do_sample_frames: whether frames are chosen from `videos`; always so for paths.
          num_frames, frame_stride: of the clip; the model's by default.
        """
        num_frames, frame_stride = num_frames or self.num_frames, frame_stride or self.frame_stride
        is_path = isinstance(videos, (str, os.PathLike))
        if is_path or isinstance(videos[0], (str, os.PathLike)):
            paths = [videos] if is_path else videos
            videos = [read_clip(path, num_frames, frame_stride) for path in paths]
        elif do_sample_frames:
            whole = [videos] if np.ndim(videos[0]) == 3 else videos
            videos = [[video[i] for i in frame_indices(len(video), num_frames, frame_stride)] for video in whole]
        return super().__call__(videos, **kwargs)

    def resize(self, image, size, resample=None, **kwargs):
        """The largest central box of the crop's shape, [3, h, w] -> [3, H, W]; another `size` has no effect."""
        target = (self.crop_size["height"], self.crop_size["width"])
        top, left, height, width = central_box(image.shape[-2:], target)
        box = image[..., top : top + height, left : left + width]
        return super().resize(box, SizeDict(height=target[0], width=target[1]), resample, **kwargs)


def frame_indices(video_length, num_frames, frame_stride, position=0.5):
    """Indices of a clip's frames; `position` from 0 (first possible clip) to below 1 (after the last).

    A video shorter than the clip is sampled at the largest stride that fits; one with fewer frames repeats its last.
    """
    if num_frames > 1:
        frame_stride = max(1, min(frame_stride, (video_length - 1) // (num_frames - 1)))
    span = (num_frames - 1) * frame_stride + 1
    start = int(position * max(1, video_length - span + 1))
    return [min(start + frame_stride * i, video_length - 1) for i in range(num_frames)]


def central_box(frame_size, crop_size):
    """(top, left, height, width) of the largest central box of the crop's aspect ratio; sizes are (height, width)."""
    unit = min(frame_size[0] / crop_size[0], frame_size[1] / crop_size[1])
    height, width = (max(1, min(side, round(unit * crop))) for side, crop in zip(frame_size, crop_size, strict=True))
    return round(0.5 * (frame_size[0] - height)), round(0.5 * (frame_size[1] - width)), height, width


def read_clip(path, num_frames, frame_stride):
    """The middle clip of a video file as a player shows it: T frames uint8[h, w, 3].

    Decodes the file twice, for a header may lie about the number of frames, and all of them may not fit into memory.
    """
    import av

    with av.open(os.fspath(path)) as container:
        length = sum(1 for _ in container.decode(video=0))
    if length == 0:
        raise ValueError(f"{path} has no frames.")
    indices = frame_indices(length, num_frames, frame_stride)
    with av.open(os.fspath(path)) as container:
        aspect = float(container.streams.video[0].sample_aspect_ratio or 1)  # of a pixel
        frames = enumerate(container.decode(video=0))
        found = {i: as_shown(frame, aspect) for i, frame in frames if i in set(indices)}
    return [found[i] for i in indices]


def as_shown(frame, pixel_aspect):
    """A decoded frame with square pixels, turned as its metadata say: uint8[h, w, 3]."""
    picture = frame.reformat(width=max(1, round(frame.width * pixel_aspect)), format="rgb24").to_ndarray()
    return np.rot90(picture, round(frame.rotation / 90) % 4)
