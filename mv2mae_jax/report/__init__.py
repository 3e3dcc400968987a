"""A run, or several to compare, as one HTML file: `python -m mv2mae_jax.report --workdir=RUN`; also at a run's end.

The file needs nothing else: no network, no script, no fonts. Charts are Matplotlib's SVG, written inline with the
page's own colours and fonts, so that they follow its dark mode and their text can be read aloud, searched and enlarged.
Interactive libraries were considered. Their scripts are large: 4.8 MB for Plotly (7.1), 1.3 MB for Bokeh (3.9). They
draw in the browser, so nothing shows where scripts are forbidden (mails, viewers of build artifacts), and their themes
do not follow the page's colours. Here a reader chooses (a token, to pause) by radio buttons and check boxes.

This file is light to import; __main__.py imports the rest. `collect` reads the files of a run, `curves` and `tables`
show them; `examine` opens its checkpoint and data for `samples`, `poses` and `neighbours`; `page` puts all into
template.html.
Imports: evaluation, features, inference.py, objectives, models, runs, monitoring, distributed, data, data/store,
config.py, console.
Used by: run.py.
"""

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

from console import progress

REPORT_FILE = "report.html"
_PARENT = "MV2MAE_REPORT_PARENT"  # environment variable; "stdin" says that stdin is a pipe held open by the parent
SECONDS_AT_END = 240  # [ours] the other processes of a run wait for process 0 when they end, by default 300 s


def write_at_end(workdir: str) -> None:
    """Writes WORKDIR/report.html of a run that has just ended; prints its size, or why there is none.

    A process of its own does this on the CPU, so a failure cannot harm the run, whose files are written by then. That
    process ends with this one, however this one ends. Only process 0 may call this.
    """
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, _PARENT: "stdin"}
    command = [sys.executable, "-m", "mv2mae_jax.report", f"--workdir={workdir}"]
    stdin, held = os.pipe()  # whose end is held as long as this process lives
    piped = {"stdin": stdin, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, env=environment, timeout=SECONDS_AT_END, **piped)
        said = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        line = said[-1] if said else f"exit code {done.returncode}"
        line = f"No report was written: {line}" if done.returncode else line
    except subprocess.TimeoutExpired:
        line = f"No report was written: it took more than {SECONDS_AT_END} s."
    except OSError as error:
        line = f"No report was written: {error}"
    finally:
        os.close(stdin)
        os.close(held)
    if not line.startswith("Report"):
        line += f" To try again: python -m mv2mae_jax.report --workdir={shlex.quote(workdir)}"
    progress.say(line)


def end_with_parent() -> None:
    """Called in the process that `write_at_end` starts: ends it when its parent has ended, for example by SIGKILL."""

    def wait() -> None:
        os.read(0, 1)  # returns when nobody holds the other end
        os._exit(1)

    if os.environ.get(_PARENT) == "stdin":
        threading.Thread(target=wait, daemon=True).start()
