"""Which room (sub-package) may import which, and that no imports form a circle."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import draw_architecture
import pytest

ROOT = pathlib.Path(__file__).parent.parent
LOOP = {"config", "config_checks", "optim", "state"}  # files beside the loop
EVERY_ROOM = {
    *("objectives", "models", "evaluation", "features", "inference", "runs", "monitoring", "distributed"),
    *("topology", "torch_weights", "torch_export", "report"),
}
# A room or a file at the package's top -> what it may import of the package. Each room's docstring says the same.
ALLOWED = {
    "distributed": set(),
    "config": set(),
    "config_checks": {"config", "objectives"},  # from the objectives only the kinds of masks, which need no JAX
    "optim": set(),
    "state": {"optim"},
    # The model reads the masks' type. `distributed` knows how arrays are sharded and which attention a chip has.
    "models": {"objectives", "distributed"},
    "objectives": {"models"},
    "runs": {"models", "distributed", "config"},
    "monitoring": {"runs", "distributed", "config"},
    "features": {"models", "runs", "distributed"},
    "torch_weights": {"models", "features", "monitoring", "distributed"},
    "inference": {"models", "features", "runs", "distributed", "torch_weights"},
    "evaluation": {"objectives", "models", "features", "inference", "runs", "monitoring", "distributed"}
    | {"torch_weights", "state"},
    "initial_state": {"runs", "monitoring", "distributed", "torch_weights", "state"},
    "training_run": {"models", "runs", "monitoring", "distributed", *LOOP},
    "train": {"objectives", "evaluation", "distributed", "initial_state", "training_run", *LOOP},
    "run": {"train", "evaluation", "runs", "distributed", "report", *LOOP},
    "report": EVERY_ROOM - {"topology", "torch_export", "report"} | LOOP,
    "torch_export": EVERY_ROOM - {"topology", "report"} | LOOP,
    "topology": EVERY_ROOM - {"torch_export", "report"} | LOOP | {"train"},
}
DATA = {
    "synthetic": {"catalog", "store"},
    "catalog": {"synthetic"},
    "store": {"catalog"},
    "prepare": {"catalog", "store"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("console", "data", "mv2mae_jax")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(module: str) -> set[str]:
    """Modules of this project that a module imports, anywhere in it."""
    return set(draw_architecture.imports_of(module)) & MODULES.keys()


def room(module: str) -> str:
    """'objectives' of mv2mae_jax.objectives.losses; 'train' of mv2mae_jax.train; '' of a package itself."""
    return ".".join(module.split(".")[1:2])


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("mv2mae_jax.")])
def test_rooms_of_the_package(module):
    """One exception: the command of features/ imports inference, although inference imports features/."""
    allowed = ALLOWED.get(room(module), set()) | ({"inference"} if module.endswith("features.__main__") else set())
    others = {room(name) for name in imported(module) if name.startswith("mv2mae_jax.")} - {room(module)}
    unwanted = others - allowed
    assert not unwanted, f"{module} imports {sorted(unwanted)}; {room(module)} may import {sorted(allowed)}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(("data.", "console."))])
def test_data_and_console_know_no_model(module):
    names = imported(module)
    assert not [name for name in names if name.startswith("mv2mae_jax")]
    if module.startswith("console."):
        assert not [name for name in names if name.startswith("data")]
    elif room(module) in DATA and not module.endswith("__main__"):
        rooms = {room(name) for name in names if room(name) in DATA and name.startswith("data.")}
        assert rooms <= DATA[room(module)] | {room(module)}


def test_no_circle():
    """Imports within functions count, too."""
    graphlib.TopologicalSorter({module: imported(module) - {module} for module in MODULES}).prepare()


def test_the_package_s_rooms_have_no_circle():
    """One exception: the model reads the type of the masks, which the objective draws."""
    rooms = {name: {other for other in allowed if other != name} for name, allowed in ALLOWED.items()}
    rooms["models"] = rooms["models"] - {"objectives"}
    graphlib.TopologicalSorter(rooms).prepare()
    assert rooms.keys() == {room(name) for name in MODULES if name.startswith("mv2mae_jax.")} - {"__main__"}


@pytest.mark.parametrize("name", sorted({name for name in MODULES if MODULES[name].name == "__init__.py"}))
def test_a_room_says_what_it_is(name):
    assert len(ast.get_docstring(ast.parse(MODULES[name].read_text())) or "") > 60


def test_training_and_evaluation_load_no_pytorch():
    """If PyTorch is installed, importing it costs seconds of every start and some hundred MB in every process."""
    code = "import sys, mv2mae_jax.train, mv2mae_jax.evaluation.probe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
