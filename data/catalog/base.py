"""What a data set tells by the names of its files: takes, views, labels, official splits."""

import abc
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """One raw file: one view of a take. A number is -1 where the data set does not say."""

    path: str  # relative to the input folder, with forward slashes
    take: str  # what all synchronised views share
    view: str  # which of them this is
    label: int = -1  # zero-based, an index into class_names
    subject: int = -1
    setup: int = -1  # the room or place, with its own cameras
    camera: int = -1
    performance: int = -1  # which repetition; another take, never another view


class Row(Protocol):
    """What a protocol looks at: a `Video`, or a row of a manifest."""

    take: str
    label: int
    subject: int
    setup: int
    camera: int
    performance: int


def random_takes(row: Row) -> Split:
    """One take in ten is for testing, by a checksum of its name. [ours]: for data without an official split."""
    return "test" if zlib.crc32(row.take.encode()) % 10 == 0 else "train"


class Catalog(abc.ABC):
    """The names, labels and official splits of one data set.

    Attributes:
      name: as in `--dataset`.
      class_names: in the order of the labels.
      extensions: of the raw files, lower case, with the dot.
      needs_pairs: a take with a single view is of no use (and goes to the quarantine).
      protocols: name -> function of a `Row` that says 'train', 'test' or None (in neither).
    """

    name: str
    class_names: tuple[str, ...] = ()
    extensions: tuple[str, ...]
    needs_pairs: bool = True
    protocols: Mapping[str, Callable[[Row], Split | None]] = {"random": random_takes}

    @abc.abstractmethod
    def parse(self, path: str) -> Video:
        """The video that `path` (relative, forward slashes) names. Raises ValueError with the reason if none."""

    @abc.abstractmethod
    def format(self, video: Video) -> str:
        """The inverse of `parse`: the file's name, without the folders that only the copy on disk knows."""

    def with_names_from(self, paths: Iterable[str]) -> "Catalog":
        """The catalogue completed with what only the listing of the files tells; itself where nothing is missing."""
        del paths
        return self

    def split(self, protocol: str, row: Row) -> Split | None:
        """'train', 'test' or None (in neither) by the protocol's name. Raises ValueError for an unknown protocol."""
        if protocol not in self.protocols:
            raise ValueError(f"{self.name} has no protocol {protocol!r}; it has {', '.join(sorted(self.protocols))}")
        return self.protocols[protocol](row)
