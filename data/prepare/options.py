"""What a user asks of a preparation, and what follows from it: the settings of the set, the clock, the boxes."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data import catalog
from data.prepare import boxes
from data.prepare.boxes import Box, Crop
from data.recordings import clocks, offsets
from data.recordings.clocks import Clock
from data.recordings.listing import Listing, PreparationError
from data.store import codec

MIN_FRAMES = 2  # [ours] of a view: a clip of one frame, repeated, shows no motion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the bytes of a prepared set, apart from the videos."""

    dataset: str
    pattern: str  # of the folder data set, else ''
    class_names: tuple[str, ...]
    codec: str
    short_side: int  # pixels
    quality: int
    max_length_difference: int  # frames by which the views of a take may differ, unless their clock allows more
    synchronised: bool  # the views of a take must agree in length; a take with one view is set aside
    clock: Clock | None = None  # of the views of a take; None pairs their frames by number
    crop: Crop | None = None  # how boxes are cut out of them; None keeps the whole picture
    min_frames: int = MIN_FRAMES  # of a view; shorter ones are set aside
    frames_fps: float | None = None  # frames per second of series of images

    @property
    def encode(self) -> Callable[[np.ndarray], bytes]:
        """Makes the stored form of a frame, uint8[h, w, 3]."""
        return functools.partial(codec.get(self.codec).encode, quality=self.quality)

    def as_dict(self) -> dict:
        """The form that is stored. Newer settings than the first sets had are left out if they change nothing."""
        newer = {"crop": None, "min_frames": MIN_FRAMES, "frames_fps": None}
        return {name: value for name, value in dataclasses.asdict(self).items() if newer.get(name, ...) != value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command, by the same names."""

    codec: str = "jpeg"  # how frames are stored; see data/store/codec.py
    # Of the stored frames, pixels [ours]: room for crops around the 128 that the model sees. Smaller videos stay as
    # they are.
    short_side: int = 170
    quality: int = 90  # on JPEG's scale, 1 to 100. [ours]
    workers: int = 1  # processes; the files written do not depend on it
    max_length_difference: int = 20  # between the views of a take, frames. [ours]: NTU's largest is 18
    # How the views of a take are put on one clock: 'start', 'timestamps', 'frames', or the path of a table of offsets;
    # None for the data set's own default.
    sync: str | None = None
    fps: float | None = None  # ticks per second of that clock; None for the rate that most views of a take have
    max_gap_share: float = clocks.MAX_GAP_SHARE  # see `clocks.Clock`
    max_gap_seconds: float = clocks.MAX_GAP_SECONDS
    crop: str = "full"  # 'full', 'motion', 'skeletons', or the path of a table of boxes; see data/prepare/boxes.py
    crop_margin: float | None = None  # see `boxes.make_crop`
    crop_aspect: float | None = None
    skeletons: Path | None = None  # the folder of NTU's .skeleton files
    sheet: bool = False  # also writes the contact sheet of data/prepare/contact_sheet.py
    truth_dir: Path | None = None  # 3D joints and cameras that the set carries, see data/store/truth.py; None for none
    min_frames: int = MIN_FRAMES  # of a view; shorter ones are set aside
    frames_fps: float | None = None  # frames per second of folders of numbered images, which are used as videos then
    # Puts the takes that the set does not hold into it, beside those that it holds; begins a set where there is none.
    add: bool = False

    def settings(self, names: catalog.Catalog, clock: Clock | None) -> Settings:
        """What decides the bytes of the set."""
        return Settings(
            dataset=names.name,
            pattern=getattr(names, "pattern", ""),
            class_names=names.class_names,
            codec=self.codec,
            short_side=self.short_side,
            quality=self.quality,
            max_length_difference=self.max_length_difference,
            synchronised=not names.not_synchronised,
            clock=clock,
            crop=boxes.make_crop(self.crop, self.crop_margin, self.crop_aspect),
            min_frames=self.min_frames,
            frames_fps=self.frames_fps,
        )

    def choose_clock(self, names: catalog.Catalog) -> tuple[Clock | None, dict[tuple[str, str], float] | None]:
        """The clock (None pairs frames by number), and a table's offsets in seconds (None without one).

        Raises:
          PreparationError: the data set or the options do not allow it.
        """
        by = self.sync or names.sync
        if by == "frames":
            if self.fps is not None:
                raise PreparationError(
                    f"--fps={self.fps:g} needs the views on one clock, and --sync=frames pairs their frames by number: "
                    "give --sync=start, if they begin together, or --sync=timestamps"
                )
            return None, None
        if names.not_synchronised:
            raise PreparationError(f"--sync={by} puts views on one clock, but {names.not_synchronised}")
        seconds = None
        if by not in (clocks.BY_START, clocks.BY_TIMESTAMPS, clocks.IF_ALIKE):
            by, seconds = clocks.BY_FILE, offsets.read(Path(by))
        limits = {"max_gap_share": self.max_gap_share, "max_gap_seconds": self.max_gap_seconds}
        return Clock(by=by, fps=self.fps, **limits), seconds

    def read_boxes(self, listing: Listing) -> tuple[dict[tuple[str, str], Box | Path] | None, list[str]]:
        """Boxes of a table, or .skeleton files, by take and view (None where none are given), and remarks on them."""
        if self.crop in ("full", "motion"):
            return None, []
        if self.crop != "skeletons":
            given = boxes.read_table(Path(self.crop))
            return given, boxes.uncovered(given, listing.videos, f"--crop={self.crop}")
        files = boxes.skeleton_files(self.skeletons)
        named = {(video.take, video.view): self.skeletons / boxes.skeleton_name(video) for video in listing.videos}
        paths = {key: files.get(path.name, path) for key, path in named.items()}
        there = {key: path for key, path in paths.items() if path.name in files}
        return paths, boxes.uncovered(there, listing.videos, f"--skeletons={self.skeletons}")
