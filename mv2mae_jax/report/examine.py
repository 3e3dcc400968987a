"""The parts of a report that need the checkpoint and the data set. A sentence names each part that must be left out."""

import dataclasses
import functools
import os
import textwrap

from ml_collections import config_dict

from console.errors import UserError
from data.store.directories import directories
from data.store.joined import open_sets
from mv2mae_jax.evaluation import probe
from mv2mae_jax.report import neighbours, poses, samples
from mv2mae_jax.report.collect import ReportedRun
from mv2mae_jax.report.neighbours import Neighbours
from mv2mae_jax.report.poses import Poses
from mv2mae_jax.report.samples import Sample
from mv2mae_jax.runs import run_record

MOST_CHARACTERS = 500  # [ours] of an error in the page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examined:
    """What the newest checkpoint of a run makes of the data.

    Attributes:
      step: of that checkpoint; None if there are no samples.
      samples: of pre-training; may be empty.
      neighbours: None if features could not be computed.
      poses: None if the data set does not know its joints.
      left_out: a sentence for each part that is missing.
    """

    step: int | None = None
    samples: list[Sample] = dataclasses.field(default_factory=list)
    neighbours: Neighbours | None = None
    poses: Poses | None = None
    left_out: list[str] = dataclasses.field(default_factory=list)


def examine(run: ReportedRun, *, num_samples: int, max_clips: int, key: str) -> Examined:
    """Computes `num_samples` samples and the features of `max_clips` clips; 0 leaves either out.

    `key` makes the names of the charts different from those of other runs.
    """
    if (num_samples or max_clips) and (other := _other_data(run)):
        return Examined(left_out=[other])
    step, found, features, pose, left_out = None, [], None, None, []
    if run.config.task == "pretrain" and num_samples:
        try:
            step, found = samples.examine(run, count=num_samples)
        except Exception as error:  # of any kind: the rest of the report is still useful
            left_out.append(f"Reconstructions, motion weights and attention are left out: {_said(error, run)}")
    if max_clips:
        opened = functools.cache(functools.partial(neighbours.open_run, run))  # opened once, for both
        try:
            features = neighbours.examine(
                run, opened(), max_clips=max_clips, key=key, blur_sigma=blur_sigma(run.config)
            )
        except Exception as error:
            left_out.append(f"Neighbours and the map of the features are left out: {_said(error, run)}")
        try:
            pose = poses.examine(run, opened(), max_clips=max_clips, blur_sigma=blur_sigma(run.config))
        except Exception as error:
            left_out.append(f"The 3D pose is left out: {_said(error, run)}")
    return Examined(step=step, samples=found, neighbours=features, poses=pose, left_out=left_out)


def _other_data(run: ReportedRun) -> str:
    """A sentence if data.dir holds another set than the one that the run was trained on; '' if not, or if unknown."""
    try:
        trained_on = run_record.read_record(run.workdir)[1].get("manifest_sha256")
        differs = trained_on not in (None, open_sets(run.config.data.dir).content_digest())
    except (ValueError, OSError):
        return ""  # a probe, an interrupted run, or no data: the parts below say what they lack
    if not differs:
        return ""
    return (
        f"All that is computed from data is left out: {run.config.data.dir} holds another set than the one that the "
        "run was trained on (their manifests differ). Name the folder of that one: --data_dir=DIR."
    )


def _said(error: Exception, run: ReportedRun) -> str:
    missing = [folder for folder in directories(run.config.data.dir) if not os.path.isdir(folder)]
    if missing:
        return (
            f"the data set {missing[0]} is not there. Start the command where the run was started, or name the folder "
            "that holds the set now: --data_dir=DIR."
        )
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(text, MOST_CHARACTERS)


def blur_sigma(config: config_dict.ConfigDict) -> float:
    """The blur that the run's pictures have; downstream runs follow the run that they started from.

    Raises ValueError if that run is not there: people who must not be recognised may be in the pictures.
    """
    if "picture_blur_sigma" in config.eval:
        return config.eval.picture_blur_sigma
    if not config.init_from or not probe.is_run(config.init_from):
        return 0.0
    if not os.path.isdir(os.path.join(config.init_from, "checkpoints")):
        raise UserError(
            f"the run that it began with, {config.init_from}, is not there, and only that one says how pictures are to "
            "be blurred. Start the command where the run was started, or bring that run back."
        )
    return blur_sigma(run_record.read_record(config.init_from)[2])
