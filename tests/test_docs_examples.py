"""The worked examples of docs/extending.md and CONTRIBUTING.md, applied to copies of the repository and run there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source_pages import tracked_files

from tests import tiny

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text()
WALK = (ROOT / "CONTRIBUTING.md").read_text()


def copy_code(folder: Path) -> Path:
    for file in tracked_files():
        if file.endswith(".py"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
    return folder


def apply(page: str, folder: Path) -> set[str]:
    """Makes the new files and the edits of a page in a copy of the repository. Returns the files that were edited."""
    for path, text in re.findall(r"<!-- file: (\S+) -->\n\n```python\n(.*?)```", page, re.DOTALL):
        assert not (folder / path).exists(), f"{path} is called new"
        (folder / path).write_text(text)
    edits = re.findall(r"<!-- edit: (\S+) -->\n\n```diff\n(.*?)```", page, re.DOTALL)
    for file, text in edits:
        lines = text.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] != mark) for mark in "+-")
        code = (folder / file).read_text()
        assert code.count(before) == 1, f"{file} does not have these lines once; mend the edit in the page:\n{before}"
        (folder / file).write_text(code.replace(before, after))
    assert len(edits) == page.count("```diff"), "an edit without `<!-- edit: FILE -->` above it"
    return {file for file, _ in edits}


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """The repository's Python files with all edits and new files of the page."""
    folder = copy_code(tmp_path_factory.mktemp("extended"))
    assert apply(PAGE, folder) == {
        *("mv2mae_jax/objectives/losses.py", "mv2mae_jax/objectives/mask_kinds.py", "mv2mae_jax/models/variants.py"),
        "data/catalog/__init__.py",
    }
    return folder


def run_in(folder: Path, script: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "XLA_FLAGS": tiny.QUICK_FLAGS}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


TRAINING = """
import jax, numpy as np
from mv2mae_jax import config_checks
from mv2mae_jax.objectives import losses, masking
from mv2mae_jax.models import tubelets
from tests import tiny

rng = np.random.default_rng(0)
prediction, target, weights = rng.normal(size=(4, 6)), rng.normal(size=(4, 6)), rng.random(4)
total, count = losses.reconstruction_loss(prediction, target, weights, "absolute")
np.testing.assert_allclose(total, sum(w * np.abs(p - t).mean() for p, t, w in zip(prediction, target, weights)), 1e-5)
assert count == 4

mask = masking.draw_mask(jax.random.key(0), batch_shape=(5,), grid=(4, 2, 3), mask_ratio=0.5, kind="slices")
assert all((np.bincount(part // 6, minlength=4) % 6 == 0).all() for part in np.asarray(mask.masked))  # whole slices

config = tiny.make_config(
    data=dict(dir="."),
    loss=dict(error="absolute"),
    masking=dict(kind="slices"),
    model=dict(decoder="shared", variant="SetTi", decoder_depth=1),
)
open("prepared.json", "w").close()
config_checks.validate(config)
state, history = tiny.run_steps(config, 3)  # all in one run, as compiling takes longest
assert all(np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0 for metrics in history), history
# Pixels of the batches are uniform on [0, 1], so the mean absolute deviation is 1/4 before normalisation.
baseline = np.mean([metrics["loss_mean_prediction"] for metrics in history])
np.testing.assert_allclose(baseline, 0.25 * np.mean(1 / tubelets.IMAGENET_STD), rtol=0.1)
names = {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params["encoder"])}
assert "qkv" not in names and {"fc1_0", "fc2_1"} <= names, names
assert state.params.keys() == {"encoder", "cross_decoder"}
"""


def test_the_loss_the_mask_the_decoder_and_the_backbone_train(extended):
    run_in(extended, TRAINING)


PREPARATION = """
from pathlib import Path
from data import catalog
from data.prepare import __main__ as prepare
from data.store import takes
from tests import video_files

for cook, action in ((1, "pour"), (2, "cut")):
    for view in ("left", "right"):
        frames = video_files.moving_square(12, 48, 64, seed=cook)
        video_files.write_video(Path(f"videos/cook0{cook}_{action}_03_{view}.mp4"), frames)
video_files.write_video(Path("videos/cook01_sing_03_left.mp4"), frames)
assert prepare.main(["--dataset=kitchen", "--input=videos", "--output=prepared", "--short_side=40", "--workers=1"]) == 0
prepared = takes.open_prepared("prepared")
assert sorted(zip(prepared.views["take"].tolist(), prepared.views["view"].tolist())) == [
    ("cook01_pour_03", "left"), ("cook01_pour_03", "right"), ("cook02_cut_03", "left"), ("cook02_cut_03", "right")
]
assert sorted(set(prepared.views["label"].tolist())) == [0, 1]
assert "sing" in Path("prepared/unmatched.csv").read_text()

kitchen = catalog.get("kitchen")
video = kitchen.parse("cook07_pour_03_left.mp4")
assert kitchen.format(video) == "cook07_pour_03_left.mp4"
assert kitchen.split("xsub", video) == "train"
assert kitchen.split("xsub", kitchen.parse("cook02_cut_01_left.mp4")) == "test"
"""


def test_the_data_set_is_prepared(extended):
    run_in(extended, PREPARATION)


def test_the_walk_to_a_changed_loss_works(tmp_path):
    """The edits of CONTRIBUTING.md fit the files, its test passes, and its config value is accepted."""
    folder = copy_code(tmp_path)
    assert apply(WALK, folder) == {"mv2mae_jax/objectives/losses.py"}
    file, test = re.search(r"<!-- append: (\S+) -->\n\n```python\n(.*?)```", WALK, re.DOTALL).groups()
    (folder / file).write_text((folder / file).read_text() + "\n\n" + test)
    name = re.search(r"def (test_\w+)", test)[1]
    value = re.search(r"--config\.(loss\.target=\w+)", WALK)[1]
    run_in(
        folder,
        "import pytest\n"
        "from mv2mae_jax import config, config_checks\n"
        f"assert pytest.main(['-q', {file!r}, '-k', {name!r} + ' or come_back']) == 0\n"
        f"loaded = config.load('configs/demo.py', [{value!r}, 'data.dir=.'])\n"
        "open('prepared.json', 'w').close()\n"
        "config_checks.validate(loaded)\n",
    )
    check_format(folder)


def test_the_extended_code_is_formatted(extended):
    check_format(extended)


def check_format(folder: Path) -> None:
    if shutil.which("ruff") or (Path(sys.executable).parent / "ruff").exists():
        config = ["--config", str(ROOT / "pyproject.toml")]
        command = [sys.executable, "-m", "ruff"]
        subprocess.run([*command, "check", *config, "data", "mv2mae_jax", "configs"], cwd=folder, check=True)
        subprocess.run([*command, "format", "--check", *config, "data", "mv2mae_jax"], cwd=folder, check=True)
