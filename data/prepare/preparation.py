"""A preparation: what is checked and told before the work, the work that is missing, and what is written at the end."""

from collections.abc import Callable, Sequence
from pathlib import Path

from data import catalog
from data.prepare import (
    carry_truth,
    contact_sheet,
    estimate,
    metadata,
    parts,
    preparation_report,
    shards,
    truth_fit,
    workers,
)
from data.prepare.options import Options, Settings
from data.recordings import raw_files
from data.recordings.listing import Listing, PreparationError, list_videos
from data.store import truth
from data.store.whole_files import only_one, remove_leftovers


def prepare(
    names: catalog.Catalog,
    inputs: Path | Sequence[Path],
    output_dir: Path,
    options: Options,
    *,
    announce: Callable[[str], None] = lambda line: None,
    write_shards: Callable[..., None] = workers.write_shards,
) -> dict:
    """Prepares a data set, or continues with a preparation that was interrupted.

    Args:
      inputs: folders and archives with the raw videos.
      output_dir: of the prepared set; made if missing.
      announce: called with the size and time to expect, if there is something to do.
      write_shards: makes the shards; see `workers.write_shards`.

    Returns:
      What prepared.json says, with the lists `quarantined` (path, take, reason), `unmatched` (path, reason), `static`
      (takes in which nothing moves), `static_views` (take, view; the same of single views) and `remarks` (lines) added.

    Raises:
      ValueError: the input or the output does not let it continue.
    """
    clock, seconds = options.choose_clock(names)
    names, listing = list_videos(names, inputs, options.frames_fps)
    unused = preparation_report.unused_offsets(seconds or {}, listing.videos)
    for line in [*preparation_report.found_wrong(names, listing), *unused]:
        announce(line)
    (output_dir / shards.PARTS).mkdir(parents=True, exist_ok=True)
    with only_one(output_dir / ".lock", f"another preparation is at work in {output_dir}; wait for it"):
        split, listing = _chosen(output_dir, listing, announce) if options.add else (shards.SPLIT, listing)
        names, listing = parts.with_own_names(names, listing) if options.add else (names, listing)
        settings = options.settings(names, clock)
        given, told = options.read_boxes(listing)
        for line in [*told, *_check_truth(options.truth_dir, listing, output_dir, split)]:
            announce(line)
        jobs = shards.plan(listing, seconds, given, split)
        _begin(parts.Part.of(split, settings, listing.videos, names), output_dir)
        if not (options.add and parts.is_finished(output_dir, split)):
            missing = _missing(jobs, settings, listing, output_dir, announce)
            if missing:
                if split == shards.SPLIT:
                    (output_dir / "prepared.json").unlink(missing_ok=True)  # the set must not look finished meanwhile
                for line in estimate.expected(missing, settings, listing.files.root, output_dir, options.workers):
                    announce(line)
                write_shards(missing, len(listing.num_bytes), settings, listing.files.root, output_dir, options.workers)
            parts.finish(output_dir, split, [job.file_name(names.name) for job in jobs], parts.found(listing))
        if options.sheet:
            accounts = parts.accounts(output_dir, split)
            sheet = contact_sheet.write(accounts, listing.videos, listing.files.root, output_dir, options.frames_fps)
            announce(f"sheet: {sheet}")
        done = metadata.write(settings, jobs, output_dir, options.truth_dir)
    if options.truth_dir is not None and done["counts"]["takes"]:
        done["remarks"] += truth_fit.remarks(output_dir)
    return done


def _missing(
    jobs: Sequence[shards.Job],
    settings: Settings,
    listing: Listing,
    output_dir: Path,
    announce: Callable[[str], None],
) -> list[shards.Job]:
    """The shards that are not there, or of files that have changed; tells of these."""
    files = {job: job.sizes | job.skeletons for job in jobs}
    missing, kept, num_bytes = set(), {}, {}
    for job in jobs:
        num_bytes |= files[job]
        account = shards.read_account(job.file_name(settings.dataset), output_dir)
        if account is None or account["inputs"] != job.digest(settings):
            missing.add(job)
        else:  # a .skeleton file that lies elsewhere now is known by its name and size alone
            kept |= {path: before for path, before in account["sources"].items() if path in files[job]}
    changed = raw_files.changed(kept, num_bytes, listing.files.root, settings.frames_fps)
    title = f"changed since they were prepared, so prepared anew: {preparation_report.count(len(changed), 'file')}"
    for line in preparation_report.section(title, changed):
        announce(line)
    return [job for job in jobs if job in missing or not files[job].keys().isdisjoint(changed)]


def _chosen(output_dir: Path, listing: Listing, announce: Callable[[str], None]) -> tuple[str, Listing]:
    """As `parts.choose`; tells what is left out."""
    split, chosen = parts.choose(output_dir, listing)
    num_left = len({video.take for video in listing.videos}) - len({video.take for video in chosen.videos})
    if num_left:
        announce(f"left out, as the set holds them: {preparation_report.count(num_left, 'take')}")
    return split, chosen


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
    return carry_truth.check(truth_dir, listing.videos)


def _begin(part: parts.Part, output_dir: Path) -> None:
    """Writes the plan of a part, or checks that the one in the output folder is this one."""
    plans = {before.split: before for before in parts.read_plans(output_dir)}
    if plans:
        parts.check_same(plans.get(part.split, plans[shards.SPLIT]), part, output_dir)
    if part.split not in plans:
        part.write(output_dir)
    of_parts = output_dir / shards.PARTS
    for folder in (output_dir, of_parts, *of_parts.glob(f"*-{truth.FOLDER}")):
        remove_leftovers(folder)  # the lock excludes a process that is still at work
