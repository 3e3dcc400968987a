"""Loading and describing a config; config_checks.py checks it. Imports no JAX, so mistakes are reported at once."""

import ast
import contextlib
import importlib.util
import inspect
import math
import os
import re
import textwrap
import tokenize
import traceback
import types
from collections.abc import Callable, Iterable, Iterator

from ml_collections import config_dict

from console.command import did_you_mean, nearest
from console.errors import UserError

TASKS = ("pretrain", "finetune", "probe")


def load(path: str, overrides: list[str] = ()) -> config_dict.ConfigDict:
    """Runs a config file and applies `key=value` overrides.

    Args:
      path: a Python file with `get_config()`; or FILE.py:VARIANT, for a file with `get_config(variant)`.
      overrides: e.g. `["data.dir=/data/ntu60", "optimizer.ema_decay=0.999"]`; values are Python literals or plain text.

    Raises:
      ValueError: no such file, a variant where there are none (or none where there are), an unknown key (names near
        ones), a value of another type, an override that another key wins over, or an error in the config file; the
        message then ends with the part of its traceback from that file on.
    """
    path, variant = re.fullmatch(r"(.*?)(?:(?<=\.py):(.*))?", path, re.DOTALL).groups()
    path = find(path)
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    if spec is None:
        raise UserError(f"The config {path} is not a Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    with _errors_told(path, module):
        spec.loader.exec_module(module)
    make = getattr(module, "get_config", None)
    _check_variant(path, make, variant)
    with _errors_told(path, module):
        config = make and (make() if variant is None else make(variant))
    if not isinstance(config, config_dict.ConfigDict):
        found = "has no function get_config()" if make is None else f"returns {type(config).__name__} from get_config()"
        raise UserError(f"The config {path} {found}. A config file has get_config(), which returns a ConfigDict.")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"The override {override!r} has no value: write --config.{key}=VALUE.")
        _set(config, key, value)
    values = dict(flatten(config))
    for key in OVERRULED.keys() & {override.partition("=")[0] for override in overrides}:
        winner = OVERRULED[key]
        if None not in (values[key], values[winner]):
            raise UserError(
                f"{key} = {values[key]} has no effect, because {winner} = {values[winner]} wins over it: add "
                f"--config.{winner}=None, or leave out --config.{key}."
            )
    return config


@contextlib.contextmanager
def _errors_told(path: str, module: types.ModuleType) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(f"The config {path} could not be built: {_explain(error, module.__file__)}") from error


def _check_variant(path: str, make: Callable[..., object] | None, variant: str | None) -> None:
    takes_one = make is not None and bool(inspect.signature(make).parameters)
    if takes_one and variant is None:
        raise UserError(f"{path} holds variants: choose one by --config={path}:VARIANT; its docstring shows how.")
    if variant is not None and not takes_one:
        raise UserError(f"{path} has no variants: leave out ':{variant}' after its name.")


def find(path: str) -> str:
    """A config file's path, relative to the current folder; 'configs/NAME.py' is also found beside this package.

    Raises:
      ValueError: it is in neither place; names near ones.
    """
    if os.path.isfile(path):
        return path
    ours = os.path.join(os.path.dirname(CONFIGS), path)
    if os.path.normpath(path).startswith(f"configs{os.sep}") and os.path.isfile(ours):
        return ours
    raise UserError(f"There is no config file {path!r}.{_near_files(path)}")


def known_keys() -> list[str]:
    """The keys of all tasks: 'optimizer.name' and so on."""
    return sorted({key for task in TASKS for key, _ in flatten(load(os.path.join(CONFIGS, f"{task}_base.py")))})


def _near_files(path: str) -> str:
    """Names config files with names like `path`, in its folder or the project's; without any, says where to look."""
    beside = os.path.dirname(path) or "."
    known = {
        file.removesuffix(".py"): os.path.normpath(os.path.join(shown, file))
        for folder, shown in ((beside, beside), (CONFIGS, "configs"))  # the latter as `find` takes it
        if os.path.isdir(folder)
        for file in sorted(os.listdir(folder))
        if file.endswith(".py") and not file.startswith("_")
    }
    near = nearest(os.path.basename(path).removesuffix(".py"), known)
    where = os.path.relpath(CONFIGS) if os.path.exists("configs") else CONFIGS
    return did_you_mean([known[name] for name in near]) or f" This project's are in {where}."


def _set(config: config_dict.ConfigDict, key: str, text: str) -> None:
    known = dict(flatten(config))
    if key not in known:
        section = [k for k in known if k.startswith(key + ".")]
        hint = f" {key} is a section with the keys {', '.join(section)}." if section else suggestion(key, known)
        raise UserError(f"There is no config key {key!r}.{hint}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"inf": math.inf, "true": True, "false": False, "none": None}.get(text.lower(), text)
    expected = type_of(config, key)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if expected is str and not isinstance(value, str):
        value = text
    if isinstance(value, list):
        value = tuple(value)
    if key in LISTS_OF_NAMES and not isinstance(value, tuple):  # `walk,run` is no literal, and 3 is no tuple
        value = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else (value,)
    default = dict(flatten(base_of(config))).get(key, 0) if value is None else 0  # only None asks for it
    if not accepts(key, value, expected, default):
        raise UserError(
            f"config.{key} = {text} is not a value of type {expected.__name__}; the config holds {known[key]!r}."
        )
    with _section(config, key).ignore_type():
        setattr(_section(config, key), key.rpartition(".")[2], value)


def type_of(config: config_dict.ConfigDict, key: str) -> type:
    """Which type the values of a key have, also of one that is not set."""
    return config_dict.ConfigDict.get_type(_section(config, key), key.rpartition(".")[2])


def accepts(key: str, value: object, expected: type, default: object) -> bool:
    """Whether a key takes a value: one of its type, or None where the base leaves it open or OPTIONAL_KEYS names it."""
    if value is None:
        return default is None or key in OPTIONAL_KEYS
    also = {float: int, tuple: list}.get(expected, expected)
    return isinstance(value, (expected, also)) and isinstance(value, bool) <= (expected is bool)


def _section(config: config_dict.ConfigDict, key: str) -> config_dict.ConfigDict:
    for name in key.split(".")[:-1]:
        config = config[name]
    return config


def flatten(config: config_dict.ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields ('optimizer.name', 'adamw') and so on, in the order of the config, which may be its JSON."""
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# Keys that hold names, which may be written with commas between.
LISTS_OF_NAMES = frozenset({"data.classes", "data.train_views", "probe.kinds"})

# Keys that may be None ("not set") although the base sets them. Those that are None in the base may always be so.
OPTIONAL_KEYS = frozenset({"loss.ess_fraction", "eval.max_takes"})


# Keys that are not looked at if another one is set.
OVERRULED = {"num_epochs": "total_steps", "loss.ess_fraction": "loss.temperature"}


def parse_steps(text: str) -> range:
    """'100:105' -> the steps 100 to 104; '' -> none. Raises ValueError for anything else."""
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 0 < int(match[1]) < int(match[2]):
        raise UserError(f"profile_steps = {text!r} must be FIRST:END with 0 < FIRST < END, e.g. 100:105.")
    return range(int(match[1]), int(match[2]))


def documented_keys(base_file: str) -> dict[str, tuple[str, str]]:
    """What the comments of a base config say of each key: {'data.num_frames': ('paper', 'frames per clip'), ...}.

    The origin is the tag `# [paper]` or `# [ours]` behind the key's value, 'ours' if there is none. The text is made of
    the comment lines directly above the key, followed by the comment behind its value.
    """
    with tokenize.open(base_file) as file:
        source = file.read()
    lines = source.splitlines()
    found = {}
    for statement in ast.walk(ast.parse(source)):
        if not isinstance(statement, ast.Assign):
            continue
        name = ast.unparse(statement.targets[0]).partition(".")[2]  # of config.model = ...: 'model'
        calls = [call for call in ast.walk(statement.value) if isinstance(call, ast.Call)]
        pairs = [(f"{name}.{k.arg}".lstrip("."), k) for call in calls for k in call.keywords]
        if isinstance(statement.value, ast.Constant):
            pairs = [(name, statement)]
        for key, node in pairs:
            tagged = re.search(r"# \[(paper|ours)\](.*)", lines[node.value.end_lineno - 1])
            tag, reason = tagged.groups() if tagged else ("ours", "")
            above = node.lineno - 1  # lines[above] is the key's
            while lines[above - 1].lstrip().startswith("#") and not lines[above - 1].lstrip().startswith("# ---"):
                above -= 1
            remarks = [line.lstrip(" #") for line in lines[above : node.lineno - 1]]
            found[key] = (tag, " ".join([*remarks, reason.strip()]).strip())
    return found


CONFIGS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")


def describe(config: config_dict.ConfigDict, facts: dict[str, str]) -> str:
    """The text that a run prints first: what follows from the config, then every value with its origin."""
    values, base = dict(flatten(config)), base_of(config)
    tags = {key: tag for key, (tag, _) in reasons_of(config).items()}
    tags |= {key: "ours" for key in values if key not in tags}
    changed = differences(config, base)
    width = max(len(name) for name in facts)
    lines = [f"{name:<{width}}  {text}" for name, text in facts.items()]
    for title, keys in (
        ("set by this run", changed),
        ("stated by the paper", [k for k, tag in tags.items() if tag == "paper" and k not in changed]),
        ("chosen by this project", [k for k, tag in tags.items() if tag == "ours" and k not in changed]),
    ):
        text = ", ".join(f"{key}={values[key]!r}" for key in keys if values.get(key) is not None)
        lines += textwrap.wrap(f"{title}: {text}", 118, subsequent_indent="  ", break_long_words=False)
    rule = "-" * 118
    return "\n".join([rule, *lines, rule])


def reasons_of(config: config_dict.ConfigDict) -> dict[str, tuple[str, str]]:
    """(tag, reason) of every key of a config, from its base; sections taken from another base have that base's."""
    keys, found = {key for key, _ in flatten(config)}, {}
    for task in (*TASKS, config.task):
        said = documented_keys(os.path.join(CONFIGS, f"{task}_base.py"))
        found |= {key: value for key, value in said.items() if key in keys}
    return found


def base_of(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The config that states every key of a task. Raises ValueError if there is no such task."""
    if (task := config.get("task")) not in TASKS:
        raise UserError(f"task = {task!r} is not one of {', '.join(TASKS)}.{suggestion(str(task), TASKS)}")
    return load(os.path.join(CONFIGS, f"{config.task}_base.py"))


def differences(one: config_dict.ConfigDict | dict, other: config_dict.ConfigDict | dict) -> list[str]:
    """Keys in which two configs, or two configs as JSON, differ: those of `one` in its order, then those it lacks."""
    one, other = dict(flatten(one)), dict(flatten(other))
    return [key for key in one | other if one.get(key) != other.get(key)]


# Words that people type in place of those in key names.
_ABBREVIATIONS = {"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "batchsize": "batch_size"}


def suggestion(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest of the known keys or values; '' if none is near."""
    name = re.sub("[A-Za-z]+", lambda word: _ABBREVIATIONS.get(word[0].lower(), word[0]), name)
    leaf = {k.rpartition(".")[2]: k for k in known}
    near = [leaf[k] for k in nearest(name.rpartition(".")[2], leaf)] + nearest(name, known)
    return did_you_mean(list(dict.fromkeys(near))[:3])


def _explain(error: Exception, file: str) -> str:
    """The message for an error that a config file raised: short for our own messages and for what a config refuses.

    A locked config refuses unknown keys, 'Key "base_lr" does not exist ...', and values of another type, "Could not
    override field 'total_steps' (reference). 9.5 is of ...". All else is shown with its traceback from `file` on.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != file:
        trace = trace.tb_next
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if not frame.filename.startswith(os.path.dirname(config_dict.__file__))]
    if len(own) < len(frames):
        place = f"{os.path.relpath(own[-1].filename)}, line {own[-1].lineno}"
        if key := re.search(r'Key "(\w+)" does not exist', str(error)):
            return f"there is no key {key[1]!r} ({place}).{suggestion(key[1], known_keys())}"
        cast = r"field '(\w+)' \(reference\)\. (.*) is of original type .* to type <class '(?:.*\.)?(\w+)'>"
        if field := re.search(cast, str(error), re.DOTALL):
            return f"{field[1]} = {field[2]} is not a value of type {field[3]} ({place})."
    if own and isinstance(error, UserError):
        return f"line {[frame.lineno for frame in own if frame.filename == file][-1]}: {error}"
    return "\n" + "".join(traceback.format_exception(type(error), error, trace)).rstrip()
