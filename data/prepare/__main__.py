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
import dataclasses
import functools
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from console import progress
from console.command import ExitCode, Parser, execute
from console.errors import UserError
from data import catalog
from data.catalog import folder
from data.prepare import boxes, estimate, metadata, preparation_report, workers
from data.prepare.options import Options
from data.prepare.preparation import prepare
from data.prepare.preparation_report import count
from data.recordings.listing import PreparationError
from data.store import codec, truth

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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    _check_combination(parser, options)
    progress.configure(options.progress)
    return execute(PROG, lambda: _run(options), goes_on=True)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        return _verify(arguments.output)
    names, inputs, stated = arguments.names, arguments.input, vars(arguments)
    shared = {field.name: stated[field.name] for field in dataclasses.fields(Options) if field.name in stated}
    options = Options(truth_dir=_truth(arguments), **shared)
    if arguments.dry_run:
        print(estimate.dry_run(names, inputs, arguments.output or Path(), options))
        return ExitCode.DONE
    announce = functools.partial(print, flush=True)
    write_shards = _on_beam(arguments.beam) if arguments.beam is not None else workers.write_shards
    prepared = prepare(names, inputs, arguments.output, options, announce=announce, write_shards=write_shards)
    print(preparation_report.report(prepared, arguments.output))
    num_quarantined = len(prepared["quarantined"])
    if num_quarantined <= arguments.max_quarantined:
        return ExitCode.DONE
    print(
        f"{count(num_quarantined, 'file')} in quarantine, more than --max_quarantined={arguments.max_quarantined}: the "
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
    lacking = {folder: [name for name in names if not (folder / name).is_file()] for folder in folders}
    there = [folder for folder, missing in lacking.items() if options.truth or len(missing) < len(names)]
    if len(there) > 1:
        found = " and ".join(map(str, there))
        raise PreparationError(f"{found} both hold 3D joints: choose one by --truth=DIR, or --truth=none")
    if not there:
        return None
    if missing := ", ".join(lacking[there[0]]):
        raise PreparationError(
            f"{there[0]} lacks {missing}: put it there, as docs/data_sets.md shows, or prepare without 3D joints and "
            "cameras: --truth=none"
        )
    return there[0]


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

An interrupted preparation continues when the same command is given again; what is done is not done again.""",
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
        "--short_side", type=_integer(1), metavar="PIXELS", help="of the frames, never enlarged (%(default)s)"
    )
    parser.add_argument(
        "--codec",
        choices=codec.NAMES,
        help="how frames are stored: as JPEG files, or as JPEG's coefficients, which the accelerator decodes "
        "(%(default)s)",
    )
    parser.add_argument("--quality", type=_integer(1, 100), metavar="Q", help="on JPEG's scale, 1 to 100 (%(default)s)")
    parser.add_argument("--workers", type=_integer(1), default=os.cpu_count(), metavar="N", help="processes (all CPUs)")
    parser.add_argument(
        "--max_length_difference",
        type=_integer(0),
        metavar="FRAMES",
        help="views of a take that differ in length by more go to the quarantine, with --sync=frames and where --sync "
        "is not given (%(default)s; NTU's largest is 18)",
    )
    parser.add_argument(
        "--min_frames",
        type=_integer(1),
        metavar="N",
        help="shorter views go to the quarantine (%(default)s: one frame shows no motion; 16 for the paper's clips "
        "without repeated frames)",
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
        metavar="PART",
        help="a view with more of its frames missing is set aside; the frame before replaces those that are missing "
        "(%(default)s)",
    )
    parser.add_argument(
        "--max_gap_seconds",
        type=_number("0 or more", lambda seconds: seconds >= 0),
        metavar="S",
        help="a view with a longer gap is set aside, too (%(default)s)",
    )
    parser.add_argument(
        "--crop",
        metavar="WHAT",
        help="what is stored of the picture. full: all; motion: a box, over the take, around what moves (the file is "
        "decoded twice); skeletons: around the joints in NTU's .skeleton files; FILE.csv or FILE.parquet: the boxes of "
        "a table (columns take, view, left, top, right, bottom, pixels of the upright raw video) (%(default)s)",
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
    own = ("workers", "truth_dir")  # --workers has another default, and the folder is found by --truth
    parser.set_defaults(**{field.name: field.default for field in dataclasses.fields(Options) if field.name not in own})
    return parser


def _check_combination(parser: Parser, options: argparse.Namespace) -> None:
    """Ends the program if the arguments do not go together; puts the catalogue into `options.names`."""
    needed = ["output"] if options.verify else ["dataset", "input"] + ["output"] * (not options.dry_run)
    missing = [f"--{name}" for name in needed if getattr(options, name) is None]
    if missing:
        parser.error(f"needs {', '.join(missing)}")
    if options.verify:
        return
    if options.output is not None and options.output.resolve() in [path.resolve() for path in options.input]:
        parser.error("--output is the folder of the videos; name a new one")
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


def _integer(least: int, most: float = math.inf) -> Callable[[str], int]:
    range_ = f"{least} or more" if most == math.inf else f"{least} to {most}"
    return _number(range_, lambda number: least <= number <= most, int)


def _number(range_: str, is_in_range: Callable[[float], bool], kind: type = float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = kind(text)
        if not is_in_range(number):  # NaN is refused, too
            raise argparse.ArgumentTypeError(f"{text} is not {range_}")
        return number

    parse.__name__ = "integer" if kind is int else "number"  # argparse's message calls what `kind` refuses so
    return parse


if __name__ == "__main__":
    sys.exit(main())
