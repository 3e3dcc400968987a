"""Configs: every key states its origin, and every mistake is named before anything is compiled."""

import math
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from configs import demo
from console import command
from mv2mae_jax import config as configs
from mv2mae_jax import config_checks

ROOT = pathlib.Path(__file__).parent.parent
BASE = str(ROOT / "configs" / "pretrain_base.py")


@pytest.fixture
def data_dir(tmp_path):
    (tmp_path / "prepared.json").write_text("{}")
    return str(tmp_path)


def check(data_dir: str, *overrides: str) -> None:
    config_checks.validate(configs.load(BASE, [f"data.dir={data_dir}", *overrides]))


@pytest.mark.parametrize(
    "path",
    sorted(set((ROOT / "configs").glob("[!_]*.py")) - {ROOT / "configs/ablations.py"}),
    ids=lambda path: path.stem,
)
def test_every_config_is_valid(path, data_dir):
    config = configs.load(str(path), [f"data.dir={data_dir}", "init_from=runs/another"])
    config_checks.validate(config)
    assert path.read_text().startswith('"""'), "the docstring states command, cost and result"


@pytest.mark.parametrize("task", configs.TASKS)
def test_every_key_of_a_base_says_where_it_comes_from(task):
    base = str(ROOT / "configs" / f"{task}_base.py")
    documented = configs.documented_keys(base).keys()
    config = configs.load(base)
    assert documented <= dict(configs.flatten(config)).keys() == configs.reasons_of(config).keys()
    assert len(re.findall(r"  # \[(?:paper|ours)\] .", pathlib.Path(base).read_text())) == len(documented)


def test_a_key_without_an_origin_breaks_no_run(tmp_path, monkeypatch):
    text = pathlib.Path(BASE).read_text()
    changed = re.sub(r"(num_frames=16,)  # \[paper\].*", r"\1", text)
    changed = changed.replace("return config.lock()", "config.loss.added = 7\n    return config.lock()")
    (tmp_path / "pretrain_base.py").write_text(changed)
    for task in ("finetune", "probe"):
        shutil.copy(ROOT / "configs" / f"{task}_base.py", tmp_path)
    monkeypatch.setattr(configs, "CONFIGS", str(tmp_path))
    text = configs.describe(configs.load(str(tmp_path / "pretrain_base.py")), {"a": "fact"})
    of_project = " ".join(text.partition("chosen by this project:")[2].split())
    assert "data.num_frames=16" in of_project and "loss.added=7" in of_project


def test_allowed_values_are_the_keys_of_the_tables():
    """The program reads the allowed values from the source of these modules, so that it need not import JAX."""
    from mv2mae_jax import features, optim
    from mv2mae_jax.models import compute, variants
    from mv2mae_jax.objectives import losses

    tables = {
        "model.variant": variants.VARIANTS,
        "model.decoder": variants.DECODERS,
        "loss.target": losses.TARGET_KINDS,
        "loss.error": losses.ERRORS,
        "probe.pooling": features.POOLINGS,
        "optimizer.name": optim.OPTIMIZERS,
    } | {f"model.{key}": ("auto", *choices) for key, choices in compute.CHOICES.items()}
    assert {key: config_checks._CHOICES[key] for key in tables} == {key: tuple(table) for key, table in tables.items()}


def test_values_stated_by_the_paper():
    values = dict(configs.flatten(configs.load(BASE)))
    paper = {key: values[key] for key, (tag, _) in configs.documented_keys(BASE).items() if tag == "paper"}
    assert paper == {  # MV2MAE, TMLR 2026
        "num_epochs": 1600,
        "data.num_frames": 16,
        "data.frame_stride": 4,
        "data.crop_size": (128, 128),
        "data.num_source_views": 1,
        "model.variant": "S",
        "model.tubelet_size": (2, 16, 16),
        "model.cross_view": True,
        "masking.kind": "random",
        "masking.target_mask_ratio": 0.7,
        "masking.source_mask_ratio": 0.7,
        "loss.temperature": None,  # the paper's 60 has no stated pixel scale
        "optimizer.name": "adamw",
    }


def test_overrides_take_literals_and_plain_text(data_dir):
    config = configs.load(
        BASE,
        [
            "total_steps=30",
            "optimizer.base_learning_rate=1",
            "loss.temperature=inf",
            "data.view_pairs=[('C001','C002')]",
            "model.scan_layers=false",
            "data.dir=1234",
            "optimizer.clip_norm=0.5",
            "loss.ess_fraction=None",
        ],
    )
    assert config.total_steps == 30
    assert config.optimizer.base_learning_rate == 1.0 and isinstance(config.optimizer.base_learning_rate, float)
    assert config.loss.temperature == math.inf and config.loss.ess_fraction is None
    assert config.data.view_pairs == (("C001", "C002"),)
    assert config.model.scan_layers is False
    assert config.data.dir == "1234" and config.optimizer.clip_norm == 0.5


@pytest.mark.parametrize("text", ["C002", "('C002')", "('C002',)", '"C002"'])
def test_a_single_name_is_a_list_of_names(text):
    config = configs.load(str(ROOT / "configs/probe_base.py"), [f"data.train_views={text}", "probe.kinds=knn, motion"])
    assert config.data.train_views == ("C002",) and config.probe.kinds == ("knn", "motion")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modl.variant=S", "Did you mean model.variant"),
        ("mask_ratio=0.7", "target_mask_ratio"),
        ("optimizer.lr=1e-3", "Did you mean optimizer.base_learning_rate"),
        ("optimizer=adamw", "optimizer is a section with the keys .*optimizer.name"),
        ("total_steps=1.5", "not a value of type int"),
        ("model.scan_layers=3", "not a value of type bool"),
        ("seed=True", "not a value of type int"),
        ("global_batch_size=None", "not a value of type int"),
        ("data.crop_size=128", "not a value of type tuple"),
        ("seed", "has no value"),
    ],
)
def test_wrong_overrides_are_refused_by_name(override, message):
    with pytest.raises(ValueError, match=message):
        configs.load(BASE, [override])


@pytest.mark.parametrize(
    ("config", "override", "winner"),
    [
        ("configs/demo.py", "num_epochs=10", f"total_steps = {demo.get_config().total_steps}"),
        ("configs/ablations.py:temperature=60", "loss.ess_fraction=0.3", "loss.temperature = 60.0"),
    ],
)
def test_an_override_that_another_key_wins_over_is_refused(config, override, winner):
    key = winner.partition(" ")[0]
    with pytest.raises(ValueError, match=rf"has no effect, because {winner} wins over it: add --config.{key}=None"):
        configs.load(config, [override])
    assert dict(configs.flatten(configs.load(config, [override, f"{key}=None"])))[key] is None
    configs.load(config, [f"{key}=900"])  # over what a config states for the other key


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_frames=15"], r"frames \(15\) is not a multiple of the tubelet's \(2\); 16 would be"),
        (["data.crop_size=(120,128)"], r"height \(120\) is not a multiple .* \(16\); 128 would be"),
        (["data.crop_size=(0,0)"], r"height \(0\) is not a multiple .* \(16\); 16 would be"),
        (
            ["data.num_frames=2", "data.crop_size=(16,16)"],
            r"of 1 tokens none can be hidden \(grid \(1, 1, 1\)\); cut the clip into more",
        ),
        (["masking.target_mask_ratio=inf"], "target_mask_ratio = inf must lie between 0.002 and"),
        (["masking.target_mask_ratio=1.0"], "leaves 0 visible and 512 masked of 512 tokens"),
        (["masking.source_mask_ratio=0.0"], "leaves 512 visible and 0 masked of 512 tokens"),
        (
            ["masking.kind=tube", "masking.target_mask_ratio=0.01", "data.crop_size=(64,64)"],
            "leaves 16 visible and 0 masked of 16 places per time slice",
        ),
        (["model.variant=XL"], "not one of Ti, S, B, L, H"),
        (["model.scan_layers=False", "model.layer_loop=rolled"], "needs stacked layers: set model.scan_layers=True"),
        (["optimizer.name=adam"], "Did you mean adamw"),
        (["global_batch_size=6", "data.repeats=4"], "not divisible by data.repeats"),
        (["loss.ess_fraction=None"], "Set loss.temperature"),
        (["loss.temperature=-1"], "must be greater than 0"),
        (["optimizer.ema_decay=1.0"], r"must lie in \(0, 1\)"),
        (["mesh.data=-1", "mesh.fsdp=-1"], "only one can take the devices that are left"),
        (["data.dir=/nowhere/at/all"], "python -m data.prepare .*--output=/nowhere/at/all"),
        (["data.dir=demo_output/not_there"], "or generate it: `make demo`"),
        (["data.dir=configs"], r"not a finished prepared data set .* it is the --input, and --output is a new folder"),
        (["data.dir="], "data.dir is not set"),
        (["data.num_source_views=0"], "model.cross_view=False"),
        (["total_steps=0"], "total_steps = 0 must be greater than 0"),
        (["eval.max_takes=0"], "must be greater than 0; None takes all"),
        (["optimizer.base_learning_rate=inf"], "base_learning_rate = inf must be finite"),
        (["loss.cross_weight=inf"], "cross_weight = inf must be finite"),
        (["data.crop_size=(32.0,32)"], r"crop_size = \(32.0, 32\) must be .* in whole numbers"),
        (["model.tubelet_size=(2,'16',16)"], "in whole numbers"),
        (["data.view_pairs=('C001','C002')"], r"view_pairs holds 'C001'; a pair is \(target view, source view\)"),
        (["data.crop_scales=('a',)"], r"crop_scales = \('a',\) must be fractions"),
        (["eval.at_steps=('x',)"], r"at_steps = \('x',\) must hold whole numbers greater than 0"),
        (["data.view_pairs=((1,2),)"], r"view_pairs holds \(1, 2\); a pair is"),
    ],
)
def test_impossible_combinations_are_refused_with_the_fix(data_dir, overrides, message):
    with pytest.raises(ValueError, match=message):
        check(data_dir, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.split=held_out"], "set data.holdout_fraction, e.g. to 0.1"),
        (["eval.split=validation"], "not one of test, held_out"),
        (["eval.crops_per_clip=2"], r"must be 1 \(the centre\) or 3"),
        (["eval.clips_per_view=0"], "must be greater than 0"),
        (["data.protocol=all"], "has no test split"),
        (["data.labels_per_class=0"], "must be greater than 0; None takes all labels"),
        (["model.drop_path=1.0"], r"must lie in \[0, 1\)"),
        (["optimizer.layer_decay=0.0"], "1 switches it off"),
        (["optimizer.layer_decay=75.0"], r"must lie in \(0, 1\]"),
        (["mix.mixup_alpha=-0.8"], "must not be negative; 0 switches mixup off"),
        (["mix.mix_probability=2.0"], r"must lie in \[0, 1\]"),
        (["loss.label_smoothing=-0.1"], r"must lie in \[0, 1\]"),
        (["global_batch_size=6", "data.repeats=4"], "not divisible by data.repeats"),
        (["data.num_frames=15"], r"frames \(15\) is not a multiple of the tubelet's \(2\); 16 would be"),
    ],
)
def test_impossible_fine_tuning_is_refused_with_the_fix(data_dir, overrides, message):
    config = configs.load(str(ROOT / "configs" / "finetune_base.py"), [f"data.dir={data_dir}", *overrides])
    with pytest.raises(ValueError, match=message):
        config_checks.validate(config)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("('knnn',)", "'knnn', which is not one of .* Did you mean knn"),
        ("(7,)", "probe.kinds holds 7, which is not one"),
    ],
)
def test_unknown_probes_are_refused_by_name(data_dir, kinds, message):
    config = configs.load(str(ROOT / "configs" / "probe_base.py"), [f"data.dir={data_dir}", f"probe.kinds={kinds}"])
    with pytest.raises(ValueError, match=message):
        config_checks.validate(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("masking.target_mask_ratio=0.9", "masking"),  # a key of pre-training
        ("optimizer.layerwise_decay=0.7", "Did you mean layer_decay|Did you mean optimizer.layer_decay"),
        ("data.label_per_class=5", "Did you mean data.labels_per_class"),
        ("optimizer.layer_decay=None", "not a value of type float"),
    ],
)
def test_wrong_overrides_of_fine_tuning_are_refused_by_name(override, message):
    with pytest.raises(ValueError, match=message):
        configs.load(str(ROOT / "configs" / "finetune_base.py"), [override])


@pytest.mark.parametrize("task", configs.TASKS)
def test_every_number_has_a_range(task, data_dir):
    """-5 fits no number of a config. A new key without a range would be accepted, and fail after hours or never."""
    path = str(ROOT / "configs" / f"{task}_base.py")
    base = configs.load(path, [f"data.dir={data_dir}", "init_from=runs/another"])
    accepted = []
    for key, _ in configs.flatten(base):
        kind = base.get_type(key) if "." not in key else base[key.partition(".")[0]].get_type(key.partition(".")[2])
        if kind not in (int, float):
            continue
        config = configs.load(path, [f"data.dir={data_dir}", "init_from=runs/another", f"{key}=-5"])
        try:
            config_checks.validate(config)
        except ValueError as error:
            assert key in str(error), f"the message for {key} does not name it: {error}"
        else:
            accepted.append(key)
    assert not accepted


@pytest.mark.parametrize("task", configs.TASKS)
def test_what_a_base_leaves_open_may_be_left_open_by_hand(task):
    path = str(ROOT / "configs" / f"{task}_base.py")
    for key, value in configs.flatten(configs.load(path)):
        if value is None:
            configs.load(path, [f"{key}=None"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probe.learning_rates=(-1.0,)", "must hold one number or more, each greater than 0"),
        ("probe.learning_rates=(0.1,0.0)", "each greater than 0"),
        ("probe.learning_rates=('a',)", "each greater than 0"),
        ("probe.weight_decays=(-100.0,)", "each 0 or more"),
        ("probe.weight_decays=()", "must hold one number or more"),
        ("seed=99999999999999999999", r"must lie in \[0, 2\*\*32\)"),
        ("data.num_frames=1", "one frame has no motion"),
    ],
)
def test_impossible_probes_are_refused_with_the_fix(data_dir, override, message):
    overrides = [f"data.dir={data_dir}", "init_from=random", "probe.kinds=('motion',)", "model.tubelet_size=(1,16,16)"]
    config = configs.load(str(ROOT / "configs" / "probe_base.py"), [*overrides, override])
    with pytest.raises(ValueError, match=message):
        config_checks.validate(config)


@pytest.mark.parametrize("baseline", ["random", "pixels"])
@pytest.mark.parametrize("base", ["pretrain_base", "finetune_base"])
def test_training_starts_from_no_baseline_of_probes(data_dir, base, baseline, tmp_path, monkeypatch):
    config = configs.load(str(ROOT / "configs" / f"{base}.py"), [f"data.dir={data_dir}", f"init_from={baseline}"])
    with pytest.raises(ValueError, match=f"init_from = '{baseline}' is for probes. From scratch it is left empty"):
        config_checks.validate(config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / baseline).mkdir()  # a run that is called so
    config_checks.validate(config)


def test_one_visible_token_is_enough(data_dir):
    check(data_dir, "masking.target_mask_ratio=0.999")  # int(0.999 * 512) = 511


def test_all_mistakes_are_named_at_once(data_dir):
    with pytest.raises(ValueError) as caught:
        check(data_dir, "data.num_frames=15", "loss.temperature=-1", "masking.target_mask_ratio=1.0")
    assert str(caught.value).count("\n  - ") == 3
    assert all(words in str(caught.value) for words in ("frames (15)", "loss.temperature", "masking.target_mask_ratio"))


def test_an_unknown_key_in_a_config_file_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import pretrain_base\n\n"
        "def get_config():\n"
        "    config = pretrain_base.get_config()\n"
        "    config.optimizer.base_lr = 1.0\n"
        "    return config\n"
    )
    with pytest.raises(
        ValueError, match=r"mine.py.*base_lr.*mine.py, line 5.*Did you mean optimizer.base_learning_rate"
    ):
        configs.load(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.unlock().base_learning_rate = 0.1", "no such key. Did you mean optimizer.base_learning_rate"),
        ("config.global_batch_size = None", "global_batch_size = None is not a value of type int; the base holds 1024"),
        ("config.model.cross_view = None", "cross_view = None is not a value of type bool"),
        ("config.total_steps = True", "total_steps = True is not a value of type int"),
        ("config.total_steps = 9.5", r"built: total_steps = 9.5 is not a value of type int \(.*mine.py, line 4\)\.$"),
        ("config.data.crop_size = 64", "crop_size = 64 is not a value of type tuple"),
        ("config.model = 'B'", "model = B is not a value of type ConfigDict"),
        ("config.unlock().model = dict(variant='B')", r"lacks .*model.width. Begin with .*configs/pretrain_base.py"),
        ("del config.unlock()['task']", "task = None is not one of pretrain, finetune, probe"),
    ],
)
def test_a_config_file_sets_the_keys_of_its_task_to_values_of_their_types(tmp_path, data_dir, line, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import pretrain_base\n"
        "def get_config():\n"
        "    config = pretrain_base.get_config()\n"
        f"    {line}\n"
        "    return config\n"
    )
    with pytest.raises(ValueError, match=message):
        config_checks.validate(configs.load(str(path), [f"data.dir={data_dir}"]))


def test_a_config_file_may_write_lists_whole_numbers_and_what_may_be_left_open(data_dir):
    config = configs.load(BASE, [f"data.dir={data_dir}"])
    config.data.crop_size, config.loss.temperature, config.eval.max_takes = [32, 32], 60, None
    config.unlock().mesh = dict(data=-1, fsdp=1)
    config_checks.validate(config)


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (["import math", "def get_config():", "    return math.tau.foo"], 3, "AttributeError: 'float' object has no"),
        (["def get_config():", "    return {}['seed']"], 2, "KeyError: 'seed'"),
        (["def get_config():", "    return 1 + 'a'"], 2, "TypeError: unsupported operand"),
        (["def get_config():", "    return int('seven')"], 2, "ValueError: invalid literal for int"),
        (["import no_such_module"], 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        (["x = undefined"], 1, "NameError: name 'undefined'"),
        (["def get_config(:"], 1, "SyntaxError: invalid syntax"),
        (["import numpy", "x = numpy.ones(2) + numpy.ones(3)"], 2, "ValueError: operands could not be broadcast"),
    ],
)
def test_a_mistake_in_a_config_file_is_told_with_its_file_line_and_stack(tmp_path, lines, line, message, capsys):
    path = tmp_path / "mine.py"
    path.write_text("\n".join(lines))
    assert command.execute("python x", lambda: configs.load(str(path))) == 2
    said = capsys.readouterr().err
    assert f'File "{path}", line {line}' in said and message in said
    assert "importlib" not in said, "the stack begins in the user's file"


def test_a_mistake_in_a_module_that_a_config_imports_is_told_with_the_whole_stack(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_of_mine.py").write_text("def width(x):\n    return x.widht\n")
    path = tmp_path / "mine.py"
    path.write_text("import helper_of_mine\ndef get_config():\n    return helper_of_mine.width(3)\n")
    with pytest.raises(
        ValueError, match=r"(?s)mine.py\", line 3, in get_config.*helper_of_mine.py\", line 2, in width"
    ):
        configs.load(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = 3", r"mine.py has no function get_config\(\)"),
        ("def get_config(): pass", r"mine.py returns NoneType from get_config\(\)"),
        (
            "from data import catalog\ndef get_config():\n    return catalog.get('ntu61')",
            "line 3: .*Did you mean ntu60",
        ),
    ],
)
def test_a_file_that_gives_no_config_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        configs.load(str(path))
    path.rename(tmp_path / "mine.txt")
    with pytest.raises(ValueError, match=r"must end in \.py"):
        configs.load(str(tmp_path / "mine.txt"))


def test_the_configs_of_the_program_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.load("configs/demo.py").task == "pretrain"
    with pytest.raises(ValueError, match=r"There is no config file 'configs/dem.py'. Did you mean configs/demo.py\?"):
        configs.load("configs/dem.py")
    for path in ("demo.py", "configs/../run.py", "mine/configs/demo.py"):
        with pytest.raises(ValueError, match="There is no config file"):
            configs.load(path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.py").write_text("import configs.probe\nget_config = configs.probe.get_config")
    assert configs.load("configs/demo.py").task == "probe", "the user's own comes first"


def test_mistakes_show_before_jax_is_imported(data_dir):
    """The refusal comes from a process in which importing JAX fails."""
    code = (
        "import sys; sys.modules['jax'] = None; sys.modules['grain'] = None; import run; "
        "sys.exit(run.main(['--config=configs/pretrain_base.py', '--workdir=/tmp/none', "
        f"'--config.data.dir={data_dir}', '--config.data.num_frames=15']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "16 would be" in result.stderr and "Traceback" not in result.stderr


def test_a_file_of_variants():
    config = configs.load("configs/ablations.py:mask_ratio=0.7", ["seed=3"])
    assert (config.masking.target_mask_ratio, config.masking.source_mask_ratio, config.seed) == (0.7, 0.7, 3)
    with pytest.raises(ValueError, match=r"no ablation 'mask_ratio=0.75'. Did you mean .*mask_ratio=0.7"):
        configs.load("configs/ablations.py:mask_ratio=0.75")
    with pytest.raises(ValueError, match=r"holds variants: choose one by --config=.*ablations\.py:VARIANT"):
        configs.load("configs/ablations.py")
    with pytest.raises(ValueError, match="has no variants: leave out ':temperature=60'"):
        configs.load("configs/demo.py:temperature=60")
