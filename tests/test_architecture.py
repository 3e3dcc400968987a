"""Which room may import which, that no imports form a circle, and that each room's docstring says the same."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import draw_architecture
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("configs", "console", "data", "mv2mae_jax")
# A room (folder) or a file that stands alone -> what it imports of the others, no more and no less. Paths start in
# mv2mae_jax/ or in the repository. A room's docstring lists the same after `Imports:`, and after `Used by:` the rows
# that name it. Tests and benchmarks/ may import anything, so they are not listed.
ALLOWED = {
    "console": set(),
    "configs": {"console"},
    "data": {"console", "data/store", "data/catalog"},
    "data/catalog": {"console"},
    # It compares a raw copy with a catalogue.
    "data/catalog/__main__.py": {"console", "data/catalog", "data/recordings", "data/prepare"},
    "data/recordings": {"console", "data/store", "data/catalog"},
    "data/prepare": {"console", "data/store", "data/catalog", "data/recordings"},
    "data/store": {"console", "data/catalog"},
    "data/sync.py": {"console", "data/store", "data/catalog", "data/recordings"},  # a command before preparation
    "data/synthetic": {"console", "data/store", "data/catalog"},
    "__init__.py": set(),
    "__main__.py": {"console"},
    "config.py": {"console"},
    "config_checks.py": {"console", "data/store", "config.py", "objectives"},  # mask_kinds, which needs no JAX
    "optim.py": {"console"},
    "state.py": {"optim.py"},
    "distributed": {"console"},
    "models": {"console", "data", "models/kernels", "distributed"},
    "models/kernels": set(),
    "objectives": {"console", "data", "models"},
    "runs": {"console", "data", "data/store", "config.py", "models", "distributed"},
    "monitoring": {"console", "data/store", "config.py", "runs", "distributed"},
    "torch_weights": {"console", "models", "monitoring", "distributed"},
    "inference.py": {"console", "data/store", "models", "runs", "distributed", "torch_weights"},
    "features": {"console", "data", "data/store", "data/catalog", "data/recordings"}
    | {"models", "inference.py", "runs", "distributed"},
    "evaluation": {"console", "data", "data/store", "state.py", "objectives", "models", "features", "inference.py"}
    | {"runs", "monitoring", "distributed", "torch_weights"},
    "initial_state.py": {"state.py", "runs", "monitoring", "distributed", "torch_weights"},
    "training_run.py": {"console", "config.py", "optim.py", "state.py", "runs", "monitoring", "distributed"},
    "train.py": {"data", "optim.py", "state.py", "initial_state.py", "training_run.py"}
    | {"objectives", "evaluation", "runs", "distributed"},
    "run.py": {"console", "data", "config.py", "config_checks.py", "train.py"}
    | {"evaluation", "runs", "distributed", "report"},
    "report": {"console", "data", "data/store", "config.py", "objectives", "models", "evaluation", "features"}
    | {"inference.py", "runs", "monitoring", "distributed"},
    "torch_export": {"console", "data/store", "config.py", "objectives", "models", "runs", "distributed"}
    | {"torch_weights"},
    "topology": {"console", "data/store", "config.py", "config_checks.py", "optim.py", "state.py", "train.py"}
    | {"objectives", "models", "runs", "monitoring", "distributed"},
}
ROOMS = {name for name in ALLOWED if not name.endswith(".py")}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
ASKS_FOR_DEVICES = {"devices", "local_devices", "device_count", "local_device_count", "default_backend"}
ASKS_FOR_DEVICES |= {"process_index", "process_count"}


def imported(module: str) -> set[str]:
    """Modules of this project that a module imports, anywhere in it."""
    return set(draw_architecture.imports_of(module)) & MODULES.keys()


def row(module: str) -> str:
    """'models/kernels' of mv2mae_jax.models.kernels.gelu, 'train.py' of mv2mae_jax.train: the longest row that fits."""
    path = MODULES[module].relative_to(ROOT).as_posix().removeprefix("mv2mae_jax/")
    fitting = [name for name in ALLOWED if path == name or path.startswith(f"{name}/")]
    assert fitting, f"{path} is no room, and no file that has a row of its own in ALLOWED"
    return max(fitting, key=len)


def rows_imported(module: str) -> set[str]:
    """`from data import clips` is an import of clips alone; the packages themselves hold nothing."""
    return {row(name) for name in imported(module) - set(PACKAGES)} - {row(module)}


def reached(*modules: str) -> set[str]:
    """All that is imported when these modules are, and within their functions."""
    found, todo = set(), set(modules)
    while todo:
        module = todo.pop()
        found.add(module)
        parents = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
        todo |= (imported(module) | parents) - found
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_row_allows(module):
    unwanted = rows_imported(module) - ALLOWED[row(module)]
    assert not unwanted, f"{module} imports {sorted(unwanted)}; {row(module)} may import {sorted(ALLOWED[row(module)])}"


@pytest.mark.parametrize("name", ALLOWED)
def test_a_row_allows_what_is_imported(name):
    members = [module for module in MODULES if row(module) == name]
    assert members, f"there is no {name}"
    unused = ALLOWED[name] - set().union(*map(rows_imported, members))
    assert not unused, f"no file of {name} imports {sorted(unused)}: take it out of ALLOWED"


def test_no_circle():
    """Imports within functions count, too. Neither modules nor rows form a circle."""
    graphlib.TopologicalSorter({module: imported(module) - {module} for module in MODULES}).prepare()
    graphlib.TopologicalSorter(ALLOWED).prepare()


def test_what_the_rows_add_up_to():
    package = {name for name in ALLOWED if not name.startswith(("configs", "console", "data"))}
    for name in ALLOWED.keys() - package:
        assert not ALLOWED[name] & package, f"{name} knows the model"
    for command in ("torch_export", "topology", "data/synthetic"):
        assert not users(command), f"{command} is a command, not a library"
    training = {row(module) for module in reached("mv2mae_jax.run", "data.pipeline") - set(PACKAGES)}
    assert {"train.py", "objectives", "evaluation", "data/store"} <= training
    assert not {"data/recordings", "data/prepare", "data/synthetic", "torch_export", "topology"} & training


def users(name: str) -> set[str]:
    """The rows that name it. A file is left out if its room is among them, or if it belongs to `name` itself."""
    found = {other for other, allowed in ALLOWED.items() if name in allowed}
    return {user for user in found if not (user.endswith(".py") and user.rpartition("/")[0] in found | {name})}


def line(room: str, head: str) -> str:
    """'models, data; x.py also y' of the line `Imports: models, data; x.py also y.` in a room's docstring."""
    package = ROOT / room if (ROOT / room).exists() else ROOT / "mv2mae_jax" / room
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    found = re.findall(rf"^{head}: (.+?)\.(?=\n|$)", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"the docstring of {room} needs one line `{head}: ...` that ends with a full stop"
    return " ".join(found[0].split())


def listed(text: str) -> set[str]:
    names = [] if text == "nothing" else text.split(", ")
    assert len(names) == len(set(names)), f"twice in {text}"
    return set(names)


def test_every_folder_is_a_room():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in MODULES.values() if path.name == "__init__.py"}
    assert {folder.removeprefix("mv2mae_jax/") for folder in folders} - {"mv2mae_jax"} == ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_says_what_it_imports(room):
    """Its own, then `; FILE also OTHERS` for a file of it that has a row."""
    own, *files = line(room, "Imports").split("; ")
    expected = {
        name.removeprefix(f"{room}/"): ALLOWED[name] - ALLOWED[room] - {room}
        for name in ALLOWED.keys() - ROOMS
        if name.rpartition("/")[0] == room
    }
    assert listed(own) == ALLOWED[room]
    assert {file: listed(others) for file, others in (text.split(" also ") for text in files)} == expected


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_says_who_uses_it(room):
    """Before a semicolon; what follows is prose. `every room but A, B` stands for all rooms, and leaves files out."""
    said = line(room, "Used by").partition("; ")[0]
    if said.startswith("every room but "):
        assert ROOMS - {room} - listed(said.removeprefix("every room but ")) == users(room) & ROOMS
    else:
        assert listed(said) == users(room)


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("mv2mae_jax.models")])
def test_of_the_models_one_file_asks_for_devices(module):
    asked = {node.attr for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Attribute)}
    assert bool(asked & ASKS_FOR_DEVICES) == (module == "mv2mae_jax.models.compute")


def test_training_and_evaluation_load_no_pytorch():
    """If PyTorch is installed, importing it costs seconds of every start and some hundred MB in every process."""
    code = "import sys, mv2mae_jax.train, mv2mae_jax.evaluation.probe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
