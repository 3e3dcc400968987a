"""What benchmarks/method.py compares, and how large each comparison is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.experiment import Generated

CLIPS_PER_STEP = 128
RATE, RATE_AT_64 = "optimizer.base_learning_rate", 0.08  # for 64 samples a step: 0.02
DECAY = "optimizer.weight_decay"
# Fine-tuning by VideoMAE's optimizer and by the one that pre-trains: column -> (optimizer, a fifth of the labels?)
FINE_TUNINGS = {
    "fine_tuned": ("adamw", False),
    "fine_tuned_fifth": ("adamw", True),
    "fine_tuned_muon": ("muon", False),
    "fine_tuned_muon_fifth": ("muon", True),
}
ADAMW_RATE = 0.012  # for 256 clips, of every row; 3e-3 at 64
# Muon's is chosen on held-out takes (benchmarks.method --rates), for all labels and for a fifth.
SCRATCH_RATE = (0.02, 0.02)
PLAIN = {"loss.ess_fraction": 1.0}  # all tokens weigh alike
SELF = {"model.cross_view": False}
SINGLE_VIEW = SELF | PLAIN | {"data.num_source_views": 0, "global_batch_size": 128}
# Overrides of configs/benchmark.py; None: nothing is pre-trained.
ROWS: dict[str, dict[str, Any] | None] = {
    "pixels": None,  # no network: the clip's own pixels as tokens
    "random": None,  # the encoder as initialised; fine-tuning it is training from scratch
    "single_view_75": SINGLE_VIEW | {"masking.target_mask_ratio": 0.75},
    "single_view_90": SINGLE_VIEW | {"masking.target_mask_ratio": 0.9},
    # The batches, masks and encoder of `cross_view`, so that the only difference is the cross-view decoder.
    "two_views": SELF | PLAIN,
    "two_views_motion": SELF,
    "cross_view": PLAIN,
    "cross_view_t60": {"loss.temperature": 60.0},
    "cross_view_ess30": {"loss.ess_fraction": 0.3},
    "cross_view_ess50": {},
    "cross_view_ess80": {"loss.ess_fraction": 0.8},
    # MuM's kind of decoder: it attends over the tokens of both views, and there is no source and no target.
    "joint": SELF | PLAIN | {"model.decoder": "joint"},
}
MAIN = ("random", "two_views", "cross_view", "cross_view_ess50")  # measured first, and drawn in the curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How large the comparison is."""

    name: str = ""  # its key in PRESETS. A result tells it, so that none is taken for another preset's.
    what: str  # what makes it differ from `cpu`, in a few words
    data: Generated  # what is trained and tested on
    clips: int  # of pre-training, 128 a step
    curve_from: int = 12_500  # clips at the first point of the curve; each further one is at twice as many
    # Of initialisation, order, masks, and of the choice of few labels. AdamW fine-tunes the first one alone: in as many
    # steps it stays far below Muon.
    seeds: tuple[int, ...]
    side_seeds: int = 2  # how many of them the rows beside the main ones have
    finetune_steps: int  # of 64 clips; 0: no fine-tuning
    finetune_rate: tuple[float, float] = (0.04, 0.08)  # Muon's base rates, for all labels and for a fifth
    labels_per_class: int  # takes with labels in the few-label columns: a fifth of those of the training people
    pretraining: dict[str, Any] = dataclasses.field(default_factory=dict)  # further overrides, as the next
    downstream: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: Sequence[str] = tuple(ROWS)
    workers: int = 1  # processes that share the machine

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """What is measured of a row: one seed of `pixels`, where nothing is drawn."""
        return self.seeds if row in MAIN else self.seeds[: 1 if row == "pixels" else self.side_seeds]

    def rehearsal(self) -> "Preset":
        """The same with one seed, a hundredth of the clips, and little data."""
        less = {"--takes": "64", "--setups": "1", "--subjects": "4"}
        given = (option.partition("=") for option in self.data.options)
        options = [f"{name}={less.get(name, value)}" for name, _, value in given]
        return dataclasses.replace(
            self,
            data=dataclasses.replace(self.data, name=f"{self.data.name}_quick", options=options),
            clips=self.clips // 100,
            curve_from=self.curve_from // 100,
            seeds=self.seeds[:1],
            finetune_steps=8,
            labels_per_class=1,
        )

    @property
    def steps(self) -> int:
        return self.clips // CLIPS_PER_STEP

    @property
    def marks(self) -> list[int]:
        """The steps of the curve without its end."""
        clips = [self.curve_from * 2**power for power in range(20)]
        return sorted({max(1, mark // CLIPS_PER_STEP) for mark in clips if mark < self.clips})


def generated(name: str, resolution: str, short_side: int, rooms: str = "plain", more: Sequence[str] = ()) -> Generated:
    """3,840 takes of 120 people in 8 rooms."""
    amounts = ("--takes=3840", "--setups=8", "--subjects=120")
    look = (f"--resolution={resolution}", f"--rooms={rooms}", "--actor_share=0.8", "--fps=10", *more)
    return Generated(name=name, options=(*amounts, *look), short_side=short_side)


CPU = Preset(
    what="the setting of configs/benchmark.py",
    data=generated("plain_32", "40x40", 32),
    clips=200_000,
    seeds=(0, 1, 2, 3),
    finetune_steps=800,
    labels_per_class=24,
    workers=2,
)
WEAK, WEAK_DECAY = {DECAY: 0.05}, "weight decay 0.05 in pre-training"
CLIPS_OF_48 = {"data.crop_size": (48, 48)}
CLIPS_OF_64 = {
    "data.num_frames": 16,
    "data.frame_stride": 1,
    "data.crop_size": (64, 64),
    "model.width": 192,
    "model.depth": 6,
    "model.num_heads": 3,
}


def harder(what: str, **changes: Any) -> Preset:
    """The main rows with something changed, two seeds."""
    return dataclasses.replace(CPU, what=what, **{"rows": MAIN, "seeds": (0, 1)} | changes)


PRESETS = {
    "cpu": CPU,
    # Four times the steps, and the weight decay so much less.
    "long": harder("four times the clips", clips=800_000, pretraining={DECAY: 0.1}),
    # Otherwise people face a camera, and one camera sees angles that the other two never showed (`pose_unseen`).
    "turned": harder("people face anywhere", data=generated("turned_32", "40x40", 32, more=("--facing_spread=45",))),
    "furnished": harder("8 furnished rooms", data=generated("furnished_32", "40x40", 32, rooms="furnished")),
    "larger": harder(
        "48x48 pixels", data=generated("plain_48", "60x60", 48), pretraining=CLIPS_OF_48, downstream=CLIPS_OF_48
    ),
    "all_pairs": harder("all pairs of cameras, not only neighbours", pretraining={"data.view_pairs": ()}),
    "masks_70": harder(
        "masks 0.7 and 0.7 [paper], not 0.9 and 0.5",
        pretraining={"masking.target_mask_ratio": 0.7, "masking.source_mask_ratio": 0.7},
    ),
    "normalized": harder("normalised pixels as targets", pretraining={"loss.target": "normalized_pixels"}),
    # Two settings of earlier editions. Under the strong one frozen tokens are worse. Under the weak one kernels grow to
    # three times the size, and fine-tuning moves them less easily.
    "strong_decay": harder("weight decay 1 in pre-training", pretraining={DECAY: 1.0}, seeds=(0,)),
    "weak_decay": dataclasses.replace(CPU, what=WEAK_DECAY, pretraining=WEAK, finetune_rate=(0.08, 0.16)),
    "weak_decay_long": harder(
        f"{WEAK_DECAY}, four times the clips",
        clips=800_000,
        pretraining=WEAK,
        finetune_rate=(0.16, 0.32),
        seeds=(0, 1, 2),
    ),
    # Learning rates beside the 0.08 of the others, chosen by `pose_validation`.
    **{
        f"{prefix}rate_{name}": harder(
            f"{what}{name} the learning rate",
            pretraining=base | {RATE: RATE_AT_64 * factor},
            seeds=(0,),
            finetune_steps=0,
            rows=MAIN[1:],
        )
        for prefix, what, base in (("", "", {}), ("weak_decay_", f"{WEAK_DECAY}, ", WEAK))
        for name, factor in (("half", 0.5), ("double", 2.0))
    },
    # Meant for half an hour of one H200 and 16 cores, and not run: no accelerator was at hand. Its rehearsal (--quick)
    # was run on one core of a CPU, where a row takes 20 minutes.
    "gpu": Preset(
        what="64x64 pixels, 16 frames, an encoder 192 wide",
        data=generated("plain_64", "72x72", 64),
        clips=800_000,
        curve_from=50_000,
        seeds=(0, 1),
        finetune_steps=1600,
        labels_per_class=24,
        pretraining=CLIPS_OF_64,
        downstream=CLIPS_OF_64,
        rows=MAIN,
        workers=2,
    ),
}
PRESETS |= {f"{name}_quick": preset.rehearsal() for name, preset in PRESETS.items()}
PRESETS = {name: dataclasses.replace(preset, name=name) for name, preset in PRESETS.items()}
