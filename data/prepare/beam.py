"""The preparation on an Apache Beam runner, for data sets that one machine takes too long for.

Needs requirements-beam.txt, best in an environment of its own. The machines of the runner need this repository on their
Python path, and the input and output folders under the same names. They make the shards by the function that the local
processes use, so the records are the same.
"""

from collections.abc import Sequence
from pathlib import Path

import apache_beam
import cv2
from apache_beam.options.pipeline_options import PipelineOptions

from data.prepare import shards
from data.prepare.options import Settings
from data.recordings.listing import PreparationError


def write_shards(
    jobs: Sequence[shards.Job],
    num_files: int,
    settings: Settings,
    input_dir: Path,
    output_dir: Path,
    num_workers: int,
    *,
    beam_options: Sequence[str],
) -> None:
    """As `workers.write_shards`, on a Beam runner, which shows its own progress and has its own number of workers.

    `beam_options` are as on the command line of a Beam pipeline, e.g. ['--runner=FlinkRunner'].

    Raises:
      PreparationError: the pipeline failed; finished shards stay.
    """
    try:
        with apache_beam.Pipeline(options=PipelineOptions(list(beam_options))) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(jobs)
                | apache_beam.Reshuffle()  # one job per bundle, wherever there is room
                | apache_beam.Map(_write_shard, settings, input_dir.absolute(), output_dir.absolute())
            )
    except RuntimeError as error:  # Beam's for whatever a worker raises
        raise PreparationError(
            f"the Beam pipeline failed: {error}. Finished shards are kept: the same command continues from here"
        ) from error


def _write_shard(job: shards.Job, settings: Settings, input_dir: Path, output_dir: Path) -> None:
    cv2.setNumThreads(1)  # the machines' processes are the parallelism
    shards.write(job, settings, input_dir, output_dir, starting=lambda path: None)
