"""What the names of a data set's files tell: takes, views, labels, official splits, complete lists."""

import abc
import dataclasses
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from console.errors import UserError

Split = Literal["train", "test"]

# Containers that FFmpeg reads. A copy of a data set may have another container than the authors' files.
EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
CONTAINER = rf"\.(?:{'|'.join(extension[1:] for extension in EXTENSIONS)})"  # as a regular expression


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One view of a take: a raw file, or an interval of one. A number is -1 where the data set does not say."""

    path: str  # relative to the input folder, with forward slashes; an archive in it looks like a folder
    take: str  # what all synchronised views share
    view: str  # which of them this is
    label: int = -1  # zero-based, an index into class_names
    subject: int = -1
    setup: int = -1  # the room or place, with its own cameras
    camera: int = -1
    performance: int = -1  # which repetition; another take, never another view
    listed_split: str = ""  # as the data set's own lists say, if the numbers above do not decide
    interval: tuple[int, int] | None = None  # the frames [start, end) of the file; None is all of them
    recording: str = ""  # what the takes cut from the same files share; '' where nothing is cut


class Row(NamedTuple):
    """What a protocol looks at in a row of a manifest; a `Video` has the same."""

    take: str
    label: int
    subject: int
    setup: int
    camera: int
    performance: int
    listed_split: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """A number of raw videos in a protocol's split; only those of one camera or class if these are given."""

    protocol: str  # 'all' for the whole data set
    split: str  # 'train', 'test', or 'all'
    camera: int | None = None
    label: int | None = None
    videos: int


def train_and_test(protocol: str, train: int, test: int, camera: int | None = None) -> tuple[Count, Count]:
    """The raw videos in the two splits of a protocol."""
    splits = {"train": train, "test": test}
    return tuple(Count(protocol=protocol, split=split, camera=camera, videos=n) for split, n in splits.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """The takes that a raw video is cut into."""

    takes: tuple[Video, ...]  # the labelled takes in it; the video itself where nothing is cut
    refused: tuple[tuple[str, str], ...] = ()  # (take, reason) of labels that cannot be used
    changed: tuple[str, ...] = ()  # remarks on labels that are used in another form than they are written


def composed(text: str) -> str:
    """A name in Unicode's composed form, NFC: some systems write 'é' as two characters, and it is the same name."""
    return unicodedata.normalize("NFC", text)


def check_range(path: str, what: str, number: int, last: int, first: int = 1) -> None:
    """Raises ValueError unless a number in a file's name is one that the data set has: `what` are `first` to `last`."""
    if not first <= number <= last:
        raise UserError(f"{path!r}: {what} are {first} to {last}, not {number}")


def random_takes(row: Row) -> Split:
    """One take in ten is for testing, by a checksum of its name. [ours]: for data without an official split."""
    return "test" if zlib.crc32(row.take.encode()) % 10 == 0 else "train"


def by(field: str, is_test: Callable[[int], bool]) -> Callable[[Row], Split]:
    """The protocol in which a field of a row, such as its subject, says whether it is for testing, else training."""
    return lambda row: "test" if is_test(getattr(row, field)) else "train"


class Catalog(abc.ABC):
    """The names, labels and official splits of one data set.

    Attributes:
      name: as in `--dataset`.
      class_names: in the order of the labels.
      extensions: of the raw files, lower case, with the dot; files have them in any case.
      whole_paths: whether `parse` reads the whole path below the input and not only its end.
      classes_from_files: whether file names give the classes' names. Then only classes with a prepared video are used.
      not_synchronised: why the views of a take must not be paired frame by frame; '' if they may be. If they may be, a
        take with a single view is of no use and goes to the quarantine.
      sync: the default of --sync. 'frames' pairs frame i of one view with frame i of another, for sets whose files were
        cut to match.
      protocols: name -> function of a `Row` that says 'train', 'test' or None (in neither).
      labels_of: protocol -> its labels, ascending, if they are not all labels; training renumbers them from 0.
      published: counts to compare a copy with, if `names` cannot rebuild the list.
      remarks: what a reader of the counts must know, with the source.
    """

    name: str
    class_names: tuple[str, ...] = ()
    extensions: tuple[str, ...] = EXTENSIONS
    whole_paths: bool = False
    classes_from_files: bool = False
    not_synchronised: str = ""
    sync: str = "frames"
    protocols: Mapping[str, Callable[[Row], Split | None]] = {"random": random_takes}
    labels_of: Mapping[str, tuple[int, ...]] = {}
    published: tuple[Count, ...] = ()
    remarks: tuple[str, ...] = ()

    @abc.abstractmethod
    def parse(self, path: str) -> Video:
        """The video that `path` (relative, forward slashes) names. Raises ValueError with the reason if none."""

    @abc.abstractmethod
    def format(self, video: Video) -> str:
        """The inverse of `parse`: the file's name, without the folders that only the copy on disk knows."""

    def names(self) -> Iterator[str]:
        """Every raw file's name in the complete data set, as `format` gives it; empty if the list is not known."""
        return iter(())

    def with_names_from(self, paths: Iterable[str]) -> "Catalog":
        """The catalogue completed with what only the list of files tells; the same object if nothing is missing."""
        return self

    def is_annotation(self, path: str) -> bool:
        """Whether the file is one of the lists or labels that `with_annotations` wants."""
        return False

    def with_annotations(self, annotations: Mapping[str, str]) -> "Catalog":
        """The catalogue completed with the text of the annotation files, by path."""
        return self

    def unused_annotations(self, videos: Iterable[Video]) -> list[tuple[str, str]]:
        """(path, reason) of annotations that none of the videos needs."""
        return []

    def cut(self, video: Video) -> Cut:
        """The labelled takes in a raw video; see `Cut`."""
        return Cut(takes=(video,))

    def split(self, protocol: str, row: Row) -> Split | None:
        """'train', 'test' or None (in neither) by the protocol's name. Raises ValueError for an unknown protocol."""
        if protocol not in self.protocols:
            raise UserError(f"{self.name} has no protocol {protocol!r}; it has {', '.join(sorted(self.protocols))}")
        return self.protocols[protocol](row)
