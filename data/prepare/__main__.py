"""Raw multi-view videos -> a prepared set: compressed frames in random-access shards, with a manifest.

`python -m data.prepare --help` tells how. The output folder holds
  DATASET-takes.array_record-*   one record per view, readable by TFDS too (dataset_info.json, features.json)
  manifest.parquet               one row per record, in the records' order
  frames.npy                     where in the shards every frame lies (data/store/frame_index.py)
  prepared.json                  what was prepared, how, and how much; written last
  quarantine.csv                 the videos and labels left out: path, take, reason
  unmatched.csv                  files that do not belong to the data set, and duplicates: path, reason
  SHA256SUMS                     digests of all files, as `sha256sum --check` and --verify read them
  plan.json, inputs.json, parts/ what an interrupted preparation and --add continue from (parts.py)
"""

import argparse
import contextlib
import fcntl
import functools
import math
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import tqdm

from console import progress
from console.command import ExitCode, Parser, execute
from console.errors import UserError
from data import catalog
from data.catalog import folder
from data.prepare import (
    archives,
    boxes,
    carry_truth,
    clocks,
    contact_sheet,
    encoding,
    metadata,
    offsets,
    pairing,
    parts,
    preparation_report,
    raw_video,
    shards,
    times,
    workers,
)
from data.prepare.boxes import Box, Crop
from data.prepare.listing import Listing, PreparationError, list_videos
from data.prepare.preparation_report import count
from data.store import codec, truth

SAMPLED_FILES = 8  # decoded to estimate size and time: at most so many, and at most one in so many

PROG = "python -m data.prepare"
EXAMPLES = """
python -m data.prepare --dataset=ntu60 --input=nturgb+d_rgb --output=prepared/ntu60 --workers=16
python -m data.prepare --dataset=ntu60 --input=nturgb+d_rgb --dry_run  # what would be done, its size and time
python -m data.prepare --dataset=folder --pattern='{take}_cam{view}.mp4' --input=videos --output=prepared/mine
python -m data.prepare --dataset=folder --pattern='{label}/{take}/{view}' --input=videos --output=prepared/mine
python -m data.prepare --dataset=pkummd --num_classes=51 --input=PKUMMDv2 --output=prepared/pkummd51
python -m data.prepare --dataset=ntu120 --input=/nfs/ntu --output=/nfs/prepared --beam='--runner=FlinkRunner ...'
python -m data.prepare --dataset=ntu120 --input=nturgbd_rgb_s018.zip --output=prepared/ntu120 --add  # setup by setup
python -m data.prepare --verify --output=prepared/ntu60  # is every byte as it was written?
"""


def prepare(
    names: catalog.Catalog,
    inputs: Path | Sequence[Path],
    output_dir: Path,
    *,
    codec_name: str = "jpeg",
    short_side: int = 170,
    quality: int = 90,
    num_workers: int = 1,
    max_length_difference: int = 20,
    sync: str | None = None,
    fps: float | None = None,
    max_gap_share: float = clocks.MAX_GAP_SHARE,
    max_gap_seconds: float = clocks.MAX_GAP_SECONDS,
    crop: str = "full",
    crop_margin: float | None = None,
    crop_aspect: float | None = None,
    skeletons: Path | None = None,
    sheet: bool = False,
    truth_dir: Path | None = None,
    min_frames: int = pairing.MIN_FRAMES,
    frames_fps: float | None = None,
    add: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    write_shards: Callable[..., None] = workers.write_shards,
) -> dict:
    """Prepares a data set, or goes on with a preparation that was interrupted.

    Args:
      names: the catalogue of the data set.
      inputs: folders and archives with the raw videos.
      output_dir: of the prepared set; made if missing.
      codec_name: how frames are stored; see data/store/codec.py.
      short_side: of the stored frames, pixels [ours]: room for crops around the 128 that the model sees. Smaller
        videos stay as they are.
      quality: on JPEG's scale, 1 to 100. [ours]
      num_workers: processes; the files written do not depend on it.
      max_length_difference: between the views of a take, frames. [ours]: NTU's largest is 18.
      sync: how the views of a take are put on one clock: 'start', 'timestamps', 'frames', or the path of a table of
        offsets; None for the data set's own default.
      fps: ticks per second of that clock; None for the rate that most views of a take have.
      max_gap_share, max_gap_seconds: see `clocks.Clock`.
      crop: 'full', 'motion', 'skeletons', or the path of a table of boxes; see data/prepare/boxes.py.
      crop_margin, crop_aspect: see `boxes.make_crop`.
      skeletons: the folder of NTU's .skeleton files.
      sheet: also writes the contact sheet of data/prepare/contact_sheet.py.
      truth_dir: 3D joints and cameras that the set carries, see data/store/truth.py; None for none.
      min_frames: of a view; shorter ones are set aside. [ours]
      frames_fps: frames per second of folders of numbered images, which are used as videos then.
      add: puts the takes that the set in `output_dir` does not hold into it, beside those that it holds; begins a set
        where there is none.
      announce: called with the size and time to expect, if there is something to do.
      write_shards: makes the shards; see `workers.write_shards`.

    Returns:
      What prepared.json says, with the lists `quarantined` (path, take, reason), `unmatched` (path, reason) and
      `static` (takes in which nothing moves) added.

    Raises:
      PreparationError: the input or the output does not let it go on.
    """
    clock, seconds = _clock(names, sync, fps, max_gap_share, max_gap_seconds)
    names, listing = list_videos(names, inputs, frames_fps)
    encode = functools.partial(codec.get(codec_name).encode, quality=quality)
    wrong = preparation_report.found_wrong(listing)
    for line in [*wrong, *offsets.unused(seconds or {}, listing.videos)]:
        announce(line)
    with _locked(output_dir):
        split, listing = _chosen(output_dir, listing, announce) if add else (shards.SPLIT, listing)
        names, listing = parts.with_own_names(names, listing) if add else (names, listing)
        settings = shards.Settings(
            dataset=names.name,
            pattern=getattr(names, "pattern", ""),
            class_names=names.class_names,
            codec=codec_name,
            short_side=short_side,
            quality=quality,
            max_length_difference=max_length_difference,
            synchronised=names.synchronised,
            clock=clock,
            crop=boxes.make_crop(crop, crop_margin, crop_aspect),
            min_frames=min_frames,
            frames_fps=frames_fps,
        )
        given, told = _boxes(crop, skeletons, listing)
        for line in [*told, *_check_truth(truth_dir, listing, output_dir, split)]:
            announce(line)
        jobs = shards.plan(listing, seconds, given, split)
        _begin(parts.Part.of(split, settings, listing.videos, names), output_dir)
        if not (add and parts.is_finished(output_dir, split)):
            missing = [job for job in jobs if shards.account_of(job, settings, output_dir) is None]
            if missing:
                if split == shards.SPLIT:
                    (output_dir / "prepared.json").unlink(missing_ok=True)  # the set must not look finished meanwhile
                how = (output_dir, short_side, encode, num_workers, settings.crop, frames_fps)
                for line in _expected(missing, listing.root, *how):
                    announce(line)
                write_shards(missing, len(listing.num_bytes), settings, listing.root, output_dir, num_workers)
            parts.finish(output_dir, split, [job.file_name(names.name) for job in jobs], parts.found(listing))
        if sheet:
            accounts = parts.accounts(output_dir, split)
            announce(f"sheet: {contact_sheet.write(accounts, listing.videos, listing.root, output_dir, frames_fps)}")
        return metadata.write(settings, jobs, output_dir, truth_dir)


def _chosen(output_dir: Path, listing: Listing, announce: Callable[[str], None]) -> tuple[str, Listing]:
    """As `parts.choose`; tells what is left out."""
    parts.note_inputs_of_older_set(output_dir)
    split, chosen = parts.choose(output_dir, listing)
    num_left = len({video.take for video in listing.videos}) - len({video.take for video in chosen.videos})
    if num_left:
        announce(f"left out, as the set holds them: {count(num_left, 'take')}")
    return split, chosen


def _boxes(
    crop: str, skeletons: Path | None, listing: Listing
) -> tuple[dict[tuple[str, str], Box | Path] | None, list[str]]:
    """Boxes of a table, or .skeleton files, by take and view (None where none are given), and remarks for the user."""
    if crop in ("full", "motion"):
        return None, []
    if crop != "skeletons":
        given = boxes.read_table(Path(crop))
        return given, boxes.uncovered(given, listing.videos, f"--crop={crop}")
    files = boxes.skeleton_files(skeletons)
    named = {(video.take, video.view): skeletons / boxes.skeleton_name(video) for video in listing.videos}
    paths = {key: files.get(path.name, path) for key, path in named.items()}
    there = {key: path for key, path in paths.items() if path.name in files}
    return paths, boxes.uncovered(there, listing.videos, f"--skeletons={skeletons}")


def _clock(
    names: catalog.Catalog, sync: str | None, fps: float | None, max_gap_share: float, max_gap_seconds: float
) -> tuple[clocks.Clock | None, dict[tuple[str, str], float] | None]:
    """The clock of a preparation (None pairs frames by number), and a table's offsets in seconds (None without one).

    Raises:
      PreparationError: the data set or the options do not allow it.
    """
    by = sync or names.sync
    if by == "frames":
        if fps is not None:
            raise PreparationError(
                f"--fps={fps:g} needs the views on one clock, and --sync=frames pairs their frames by number: give "
                "--sync=start, if they begin together, or --sync=timestamps"
            )
        return None, None
    if not names.synchronised:
        raise PreparationError(f"--sync={by} puts views on one clock, but {names.not_synchronised}")
    seconds = None
    if by not in (clocks.BY_START, clocks.BY_TIMESTAMPS, clocks.IF_ALIKE):
        by, seconds = clocks.BY_FILE, offsets.read(Path(by))
    return clocks.Clock(by=by, fps=fps, max_gap_share=max_gap_share, max_gap_seconds=max_gap_seconds), seconds


@contextlib.contextmanager
def _locked(output_dir: Path) -> Iterator[None]:
    """Makes the output folder and keeps other preparations out of it."""
    (output_dir / shards.PARTS).mkdir(parents=True, exist_ok=True)
    with open(output_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreparationError(f"another preparation is at work in {output_dir}; wait for it") from None
        yield


def _check_truth(truth_dir: Path | None, listing: Listing, output_dir: Path, split: str) -> list[str]:
    """Describes a truth, before hours of decoding; PreparationError if it cannot be carried."""
    carried = output_dir / truth.FOLDER
    if truth_dir is not None and split != shards.SPLIT:
        if not (carried / truth.SKELETON).exists():
            raise PreparationError(
                f"{output_dir} has no 3D joints and cameras, so those in {truth_dir} cannot be added: --truth=none "
                "leaves them out"
            )
        if truth.read_skeleton(carried / truth.SKELETON) != truth.read_skeleton(truth_dir / truth.SKELETON):
            raise PreparationError(f"{truth_dir} has other joints than the set in {output_dir}: make them the same")
    if truth_dir is None:
        if (carried / truth.SKELETON).exists():
            raise PreparationError(
                f"{carried} holds the truth of an earlier preparation, and this one has none: give --truth=DIR again, "
                f"or delete {carried}"
            )
        return []
    if truth_dir.resolve() == carried.resolve():
        raise PreparationError(f"{truth_dir} would be overwritten by what is carried: choose another --output")
    return _describe_truth(truth_dir, listing)


def _describe_truth(truth_dir: Path, listing: Listing) -> list[str]:
    try:
        return carry_truth.check(truth_dir, listing.videos)
    except UserError as error:
        raise PreparationError(str(error)) from error


def _begin(part: parts.Part, output_dir: Path) -> None:
    """Writes the plan of a part, or checks that the one in the output folder is this one."""
    plans = {before.split: before for before in parts.read_plans(output_dir)}
    if part.split in plans:
        parts.check_same(plans[part.split], part, output_dir, same_takes=True)
    else:
        if plans:
            parts.check_same(plans[shards.SPLIT], part, output_dir, same_takes=False)
        part.write(output_dir)
    for leftover in [*output_dir.glob(".*.tmp"), *(output_dir / shards.PARTS).glob(".*.tmp")]:
        leftover.unlink()  # left by a killed process: the lock excludes one that is still at work


def dry_run(
    names: catalog.Catalog,
    inputs: Path | Sequence[Path],
    output_dir: Path,
    short_side: int,
    encode: Callable[[np.ndarray], bytes],
    num_workers: int,
    truth_dir: Path | None = None,
    crop: str = "full",
    crop_margin: float | None = None,
    crop_aspect: float | None = None,
    skeletons: Path | None = None,
    frames_fps: float | None = None,
) -> str:
    """What `prepare` would do, with the size and time to expect from a few of the videos; writes nothing."""
    names, listing = list_videos(names, inputs, frames_fps)
    views_of_take = Counter(video.take for video in listing.videos)
    takes_with = Counter(views_of_take.values())
    given, told = _boxes(crop, skeletons, listing)
    cut = boxes.make_crop(crop, crop_margin, crop_aspect)
    jobs = shards.plan(listing, boxes=given)
    lines = [
        f"{names.name}: {count(len(listing.videos), 'video')} of {count(len(views_of_take), 'take')} in "
        f"{count(len(listing.num_bytes), 'file')}, {sum(listing.num_bytes.values()) / 1e6:.1f} MB, into "
        f"{count(len(jobs), 'shard')}",
        *(f"  {count(takes_with[views], 'take')} with {count(views, 'view')}" for views in sorted(takes_with)),
        *times.table(listing, listing.root),
        *preparation_report.found_wrong(listing),
        *preparation_report.unmatched(listing.unmatched),
        *preparation_report.left(len(listing.files.duplicates), listing.files.passed_over),
        *(_describe_truth(truth_dir, listing) if truth_dir else []),
        *told,
        *_expected(jobs, listing.root, output_dir, short_side, encode, num_workers, cut, frames_fps),
    ]
    return "\n".join(lines)


def _expected(
    jobs: Sequence[shards.Job],
    input_dir: Path,
    output_dir: Path,
    short_side: int,
    encode: Callable[[np.ndarray], bytes],
    num_workers: int,
    crop: Crop | None,
    frames_fps: float | None,
) -> list[str]:
    """Size and time, from a few files; grows with their bytes."""
    cv2.setNumThreads(1)  # as in a worker
    sizes = {v.path: size for job in jobs for v, size in zip(job.videos, job.num_bytes, strict=True)}
    sample = list(sizes)[:: max(SAMPLED_FILES, math.ceil(len(sizes) / SAMPLED_FILES))]
    given = {video: box for job in jobs for video, box in job.boxes_given.items()}
    videos_in = {path: [video for job in jobs for video in job.videos if video.path == path] for path in sample}
    bytes_in, bytes_out, seconds, bad = 0, 0, 0.0, []
    with archives.Reader(input_dir, sample, frames_fps=frames_fps) as files:
        for path in sample:
            began = time.monotonic()
            try:
                with files.open(path) as file:
                    _, shown = encoding.encode_file(videos_in[path], file, short_side, encode, crop, given)
                without = [why for why in shown.values() if isinstance(why, str)]
                bad += [f"  {path}: {why}" for why in without[:1]]
                if len(without) == len(shown):
                    continue
                stored = {id(frames): frames for frames in shown.values() if not isinstance(frames, str)}
                bytes_out += sum(sum(map(len, frames.frames)) for frames in stored.values())
                bytes_in += sizes[path]
                seconds += time.monotonic() - began
            except (raw_video.BadVideo, archives.BadArchive) as error:
                bad.append(f"  {path}: {error}")
    if not bytes_in:
        return ["none of the videos tried can be read:", *bad]
    ratio = sum(sizes.values()) / bytes_in
    free = shutil.disk_usage(_existing(output_dir)).free
    return [
        f"expected, from {count(len(sample) - len(bad), 'file')} of {len(sizes)}: {ratio * bytes_out / 1e6:.1f} MB, "
        f"{tqdm.tqdm.format_interval(ratio * seconds / num_workers)} with {count(num_workers, 'worker')}",
        *bad,
        *[f"warning: only {free / 1e6:.0f} MB are free where {output_dir} lies"] * (ratio * bytes_out > free),
    ]


def _existing(folder: Path) -> Path:
    return next(path for path in [folder, *folder.absolute().parents] if path.exists())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    _check_combination(parser, options)
    progress.configure(options.progress)
    return execute(PROG, lambda: _run(options), goes_on=True)


def _run(options: argparse.Namespace) -> int:
    if options.verify:
        return _verify(options.output)
    if options.dry_run:
        encode = functools.partial(codec.get(options.codec).encode, quality=options.quality)
        how = (options.short_side, encode, options.workers, _truth(options))
        how += (options.crop, options.crop_margin, options.crop_aspect, options.skeletons, options.frames_fps)
        print(dry_run(options.names, options.input, options.output or Path(), *how))
        return ExitCode.DONE
    prepared = prepare(
        options.names,
        options.input,
        options.output,
        codec_name=options.codec,
        short_side=options.short_side,
        quality=options.quality,
        num_workers=options.workers,
        max_length_difference=options.max_length_difference,
        sync=options.sync,
        fps=options.fps,
        max_gap_share=options.max_gap_share,
        max_gap_seconds=options.max_gap_seconds,
        crop=options.crop,
        crop_margin=options.crop_margin,
        crop_aspect=options.crop_aspect,
        skeletons=options.skeletons,
        sheet=options.sheet,
        truth_dir=_truth(options),
        min_frames=options.min_frames,
        frames_fps=options.frames_fps,
        add=options.add,
        announce=functools.partial(print, flush=True),
        write_shards=_on_beam(options.beam) if options.beam is not None else workers.write_shards,
    )
    print(preparation_report.report(prepared, options.output))
    num_quarantined = len(prepared["quarantined"])
    if num_quarantined <= options.max_quarantined:
        return ExitCode.DONE
    print(
        f"{count(num_quarantined, 'file')} in quarantine, more than --max_quarantined={options.max_quarantined}: the "
        f"set is complete without them, and exit code {ExitCode.PARTLY} says so",
        file=sys.stderr,
    )
    return ExitCode.PARTLY


def _truth(options: argparse.Namespace) -> Path | None:
    """The folder that --truth names; by default INPUT/truth, if there is one of these."""
    if options.truth == "none":
        return None
    folders = [Path(options.truth)] if options.truth else [path / truth.FOLDER for path in options.input]
    names = (truth.SKELETON, truth.JOINTS, truth.CAMERAS)
    there = [folder for folder in folders if any((folder / name).is_file() for name in names)]
    if len(there) > 1:
        raise PreparationError(f"{' and '.join(map(str, there))} both tell a truth: choose one by --truth, or none")
    if there:
        return there[0]
    if options.truth:
        raise PreparationError(f"--truth={options.truth}: there is no {truth.SKELETON} in it; docs/data_sets.md tells")
    return None


def _on_beam(beam_options: str) -> Callable[..., None]:
    try:
        from data.prepare import beam
    except ImportError as error:
        raise PreparationError(
            f"--beam needs Apache Beam ({error}): install requirements-beam.txt into an environment of its own"
        ) from error
    return functools.partial(beam.write_shards, beam_options=shlex.split(beam_options))


def _verify(directory: Path) -> int:
    damage = metadata.verify(directory)
    for line in damage:
        print(line)
    if damage:
        print(f"{directory} is damaged: delete the files named above and give the preparing command again")
        return ExitCode.FAILED
    print(f"{directory} is intact")
    return 0


def make_parser() -> Parser:
    parser = Parser(
        PROG,
        "Raw multi-view videos -> compressed frames in random-access shards, with a manifest.",
        examples=EXAMPLES,
        notes="""\
Files in .zip and .tar(.gz) archives below --input are read without being unpacked to disk.

An interrupted preparation goes on when the same command is given again; what is done is not done again.""",
        exit_codes={
            ExitCode.DONE: "prepared (or intact, with --verify)",
            ExitCode.FAILED: "damaged, with --verify; else a fault of this program: the traceback says where",
            ExitCode.REFUSED: "the arguments, the input or the output do not fit: no videos, disk full, ...",
            ExitCode.PARTLY: "prepared, but more than --max_quarantined videos were left out (quarantine.csv)",
        },
    )
    parser.add_argument("--dataset", help=f"one of {', '.join(catalog.NAMES)}")
    parser.add_argument(
        "--input",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder with the raw videos, or an archive; may be given several times",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the prepared set")
    parser.add_argument(
        "--pattern",
        help="for --dataset=folder: file names below each --input, of the fields {take} and {view} and optionally "
        f"{{label}} and {{subject}}; without an extension it takes every video (default: '{folder.DEFAULT_PATTERN}')",
    )
    parser.add_argument(
        "--num_classes", type=int, help="for --dataset=pkummd: 41, the classes that occur (default), or all 51"
    )
    parser.add_argument(
        "--short_side", type=_integer(1), default=170, metavar="PIXELS", help="of the frames, never enlarged (170)"
    )
    parser.add_argument(
        "--codec",
        choices=codec.NAMES,
        default="jpeg",
        help="how frames are stored: as JPEG files, or as JPEG's coefficients, which the accelerator decodes (jpeg)",
    )
    parser.add_argument(
        "--quality", type=_integer(1, 100), default=90, metavar="Q", help="on JPEG's scale, 1 to 100 (90)"
    )
    parser.add_argument("--workers", type=_integer(1), default=os.cpu_count(), metavar="N", help="processes (all CPUs)")
    parser.add_argument(
        "--max_length_difference",
        type=_integer(0),
        default=20,
        metavar="FRAMES",
        help="views of a take that differ in length by more go to the quarantine, with --sync=frames and where --sync "
        "is not given (20; NTU's largest is 18)",
    )
    parser.add_argument(
        "--min_frames",
        type=_integer(1),
        default=pairing.MIN_FRAMES,
        metavar="N",
        help=f"shorter views go to the quarantine ({pairing.MIN_FRAMES}: one frame shows no motion; 16 for "
        "the paper's clips without repeated frames)",
    )
    parser.add_argument(
        "--sync",
        metavar="HOW",
        help="what the clocks of a take's views have in common. start: the recordings begin together, and first frames "
        "are aligned; timestamps: the times in the files are of one clock; FILE.csv: they are once its seconds are "
        "added (columns take, view, seconds); frames: frames are paired by number, whatever their times (for "
        "--dataset=folder as start, where the files' first times agree, else the take is refused; for others frames)",
    )
    parser.add_argument(
        "--fps",
        type=_number("above 0", lambda fps: 0 < fps <= 1000),
        metavar="RATE",
        help="frames per second of the prepared views (the rate most views of the take have)",
    )
    parser.add_argument(
        "--frames_fps",
        type=_number("above 0", lambda fps: 0 < fps <= 1000),
        metavar="RATE",
        help="use folders of numbered images (.jpg, .png) as videos, with so many frames per second; a folder's path "
        "is read as a video's without its ending",
    )
    parser.add_argument(
        "--max_gap_share",
        type=_number("0 to 1", lambda share: 0 <= share <= 1),
        default=clocks.MAX_GAP_SHARE,
        metavar="PART",
        help="a view with more of its frames missing goes to the quarantine; the frame before stands in for those that "
        f"are missing ({clocks.MAX_GAP_SHARE:g})",
    )
    parser.add_argument(
        "--max_gap_seconds",
        type=_number("0 or more", lambda seconds: seconds >= 0),
        default=clocks.MAX_GAP_SECONDS,
        metavar="S",
        help=f"as does one that lacks frames for longer at a stretch ({clocks.MAX_GAP_SECONDS:g})",
    )
    parser.add_argument(
        "--crop",
        default="full",
        metavar="WHAT",
        help="what is stored of the picture. full: all; motion: a box, over the take, around what moves (the file is "
        "decoded twice); skeletons: around the joints in NTU's .skeleton files; FILE.csv or FILE.parquet: the boxes of "
        "a table (columns take, view, left, top, right, bottom, pixels of the upright raw video) (full)",
    )
    parser.add_argument(
        "--skeletons", type=Path, metavar="DIR", help="folder with the .skeleton files, for --crop=skeletons"
    )
    parser.add_argument(
        "--crop_margin",
        type=_number("0 to 1", lambda share: 0 <= share <= 1),
        metavar="SHARE",
        help=f"of a box's longer side, added on every side ({boxes.FOUND_MARGIN:g}; 0 for a table's boxes)",
    )
    parser.add_argument(
        "--crop_aspect",
        type=_number("0.1 to 10, or 0", lambda aspect: aspect == 0 or 0.1 <= aspect <= 10),
        metavar="RATIO",
        help="width / height that a box is extended to, as far as the picture goes; 0 leaves it ("
        f"{boxes.FOUND_ASPECT:g}; 0 for a table's boxes)",
    )
    parser.add_argument(
        "--sheet", action="store_true", help="also write OUTPUT/contact_sheet.png, frames of every camera with boxes"
    )
    parser.add_argument(
        "--truth",
        metavar="DIR",
        help="3D joints and cameras to carry along, see docs/data_sets.md (INPUT/truth if there is one; none for none)",
    )
    parser.add_argument(
        "--max_quarantined", type=_integer(0), default=0, metavar="K", help="more than K left out: exit code 3 (0)"
    )
    parser.add_argument(
        "--beam",
        metavar="OPTIONS",
        help="make the shards on an Apache Beam runner with these options, in place of --workers processes; --input "
        "and --output must be the same folders on all its machines",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="put the takes that the set in --output does not hold yet into it, with its settings; what it holds stays "
        "as it is, and its raw videos may be gone (begins a set where there is none)",
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and the size and time")
    parser.add_argument("--verify", action="store_true", help="check the digests of --output, and nothing else")
    parser.add_progress()
    return parser


def _check_combination(parser: Parser, options: argparse.Namespace) -> None:
    """Ends the program if the arguments do not go together; puts the catalogue into `options.names`."""
    needed = ["output"] if options.verify else ["dataset", "input"] + ["output"] * (not options.dry_run)
    missing = [f"--{name}" for name in needed if getattr(options, name) is None]
    if missing:
        parser.error(f"needs {', '.join(missing)}")
    if options.verify:
        return
    if (options.crop == "skeletons") != (options.skeletons is not None):
        parser.error("--crop=skeletons and --skeletons=DIR go together")
    if options.crop == "skeletons" and options.dataset not in boxes.WITH_SKELETONS:
        known = ", ".join(boxes.WITH_SKELETONS)
        parser.error(f"--crop=skeletons is for files named as NTU's are (--dataset={known}), not {options.dataset}")
    if options.crop == "full" and (options.crop_margin is not None or options.crop_aspect is not None):
        parser.error("--crop_margin and --crop_aspect need a --crop other than full")
    try:
        options.names = catalog.get(options.dataset, pattern=options.pattern, num_classes=options.num_classes)
    except UserError as error:
        parser.error(str(error))


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{text} is not {least} {'or more' if most is None else f'to {most}'}")
        return number

    parse.__name__ = "integer"  # argparse's message calls what int() refuses an invalid "integer"
    return parse


def _number(range_: str, is_in_range: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = float(text)
        if not is_in_range(number):  # NaN is refused, too
            raise argparse.ArgumentTypeError(f"{text} is not {range_}")
        return number

    parse.__name__ = "number"
    return parse


if __name__ == "__main__":
    sys.exit(main())
