"""Any synchronised videos in a folder, told apart by a pattern such as '{label}/{take}_cam{view}.mp4'."""

import re
from collections.abc import Iterable
from typing import ClassVar

from console.command import did_you_mean, nearest
from console.errors import UserError
from data.catalog.base import CONTAINER, EXTENSIONS, Catalog, Row, Split, Video, composed, random_takes

FIELDS = ("take", "view", "label", "subject")
DEFAULT_PATTERN = "{take}_cam{view}"


def xsub(row: Row) -> Split | None:
    """One subject in five, in alphabetical order from the first, is for testing [ours]; none where no name tells it."""
    if row.subject < 0:
        return None
    return "train" if row.subject % 5 else "test"


class Folder(Catalog):
    """Videos named by a pattern of the fields {take}, {view}, and optionally {label} and {subject}.

    A field matches anything but a slash, and as much as it can: '{take}_{view}' reads 'a_b_c' as take 'a_b', view 'c'.
    A field that occurs twice must match the same text. Without an extension at its end the pattern takes every video.
    All fields but the view tell takes apart, so 'walk/01_cam1.mp4' and 'run/01_cam1.mp4' are two takes.
    """

    name = "folder"
    sync = "alike"  # clocks.IF_ALIKE
    whole_paths = True
    classes_from_files = True
    protocols: ClassVar = {"xsub": xsub, "random": random_takes}

    def __init__(
        self, pattern: str = DEFAULT_PATTERN, class_names: tuple[str, ...] = (), subject_names: tuple[str, ...] = ()
    ):
        """`class_names` and `subject_names` are known after `with_names_from`. Raises ValueError for a bad pattern."""
        self.pattern = pattern
        self.class_names = class_names
        self.subject_names = subject_names
        extension = re.search(r"\.[A-Za-z0-9]+$", pattern)
        self.extensions = (extension.group().lower(),) if extension else EXTENSIONS
        self._fields, self._regex = _compile(pattern, extension.group() if extension else "")

    def parse(self, path: str) -> Video:
        fields = self._parse_fields(path)
        return Video(
            path=path,
            take="/".join(fields[name] for name in self._fields if name != "view"),
            view=fields["view"],
            label=_index(path, "label", fields, self.class_names),
            subject=_index(path, "subject", fields, self.subject_names),
        )

    def format(self, video: Video) -> str:
        """See `Catalog.format`; the extension is that of `video.path` where the pattern has none."""
        names = [name for name in self._fields if name != "view"]
        fields = dict(zip(names, video.take.split("/"), strict=True), view=video.view)
        extension = "" if len(self.extensions) == 1 else "." + video.path.rpartition(".")[2]
        return self.pattern.format(**fields) + extension

    def with_names_from(self, paths: Iterable[str]) -> "Folder":
        """See `Catalog.with_names_from`: labels and subjects get their numbers in alphabetical order."""
        found = {"label": set(), "subject": set()}
        for path in paths:
            try:
                fields = self._parse_fields(path)
            except UserError:
                continue  # `parse` reports such a file
            for name in found.keys() & fields.keys():
                found[name].add(fields[name])
        return Folder(self.pattern, tuple(sorted(found["label"])), tuple(sorted(found["subject"])))

    def _parse_fields(self, path: str) -> dict[str, str]:
        matched = self._regex.fullmatch(path)
        if not matched:
            raise UserError(f"{path!r} does not match the pattern {self.pattern!r}")
        return matched.groupdict()


def _compile(pattern: str, extension: str) -> tuple[list[str], re.Pattern]:
    """The pattern's fields in order, and the regular expression that reads them in composed paths. Raises ValueError.

    `extension` is the pattern's end, '' where it takes every video; files have it in any case.
    """
    fields, regex = [], ""
    for literal, field in re.findall(r"([^{}]+)|(\{\w*\}|.)", composed(pattern.removesuffix(extension))):
        name = field.strip("{}")
        if literal:
            regex += re.escape(literal)
        elif len(field) == 1:
            raise UserError(f"pattern {pattern!r}: a brace without its partner, or more than a name between them")
        elif name not in FIELDS:
            hint = did_you_mean([f"{{{near}}}" for near in nearest(name, FIELDS)])
            raise UserError(f"pattern {pattern!r}: unknown field {field}; fields are {', '.join(FIELDS)}.{hint}")
        elif name in fields:
            regex += f"(?P={name})"
        else:
            regex += f"(?P<{name}>[^/]+)"
            fields.append(name)
    missing = [name for name in ("take", "view") if name not in fields]
    if missing:
        raise UserError(
            f"pattern {pattern!r} lacks {' and '.join(f'{{{name}}}' for name in missing)}: it must say which files are "
            f"views of one take, as '{{take}}_cam{{view}}.mp4' does"
        )
    regex += f"(?i:{re.escape(extension) or CONTAINER})"
    return fields, re.compile(regex)


def _index(path: str, field: str, fields: dict[str, str], names: tuple[str, ...]) -> int:
    if field not in fields:
        return -1
    if fields[field] not in names:
        raise UserError(
            f"{path!r}: {field} {fields[field]!r} is not among {', '.join(names) or 'the names (none known)'}"
        )
    return names.index(fields[field])
