"""Every key of a fine-tuning run, once, with its reason. Other configs state only what differs.

The values are VideoMAE's fine-tuning recipe with the paper's clips. We could not read the MV2MAE paper's own recipe, so
all that differs from pre-training is [ours], from VideoMAE's `run_class_finetuning.py` and its scripts for
Something-Something V2. The sections mesh, checkpoint, log and limits are those of pretrain_base.py.

Command: this file is a base; run one of the configs built on it, such as configs/finetune_ntu60.py.
"""

from ml_collections import config_dict

from configs import pretrain_base


def get_config() -> config_dict.ConfigDict:
    base = pretrain_base.get_config()
    config = config_dict.create(
        task="finetune",  # [ours] the objective, of mv2mae_jax/objectives
        seed=0,  # [ours] decides the head's initialisation, data order, augmentation, mixing and stochastic depth
        # --- Length and batch -------------------------------------------------------------------------------------
        num_epochs=50,  # [ours] VideoMAE's; one epoch = one pass over the views, `data.repeats` crops of each
        total_steps=config_dict.placeholder(int),  # [ours] if set, wins over num_epochs
        warmup_epochs=5.0,  # [ours] VideoMAE's; at most a tenth of the run when total_steps is set
        global_batch_size=256,  # [ours] clips per step, over all devices
        compute_dtype="auto",  # [ours] auto | float32 | bfloat16
        # Empty trains from scratch. Only the encoder is taken; clip length and resolution may differ.
        init_from="",  # [ours] a run's workdir, a VideoMAE .pth, or a Hugging Face folder
        init_from_step=config_dict.placeholder(int),  # [ours] which checkpoint of that run; the newest by default
        profile_steps="",  # [ours] e.g. 100:105 traces the steps 100 to 104 for TensorBoard and xprof
    )

    config.data = config_dict.create(
        dir="",  # [ours] a directory made by `python -m data.prepare`; several, as a,b, are used as one set
        protocol="xsub",  # [ours] the catalogue's protocol; its training split trains, its test split tests
        classes=(),  # [ours] classes to use, by name or number, e.g. ("run", "walk"); empty = everything
        train_views=(),  # [ours] e.g. ("C002", "C003"); empty = all views of the training split
        labels_per_class=config_dict.placeholder(int),  # [ours] takes per class; none = the full training split
        label_seed=0,  # [ours] selects those takes; smaller sets are nested in larger ones
        holdout_fraction=0.0,  # [ours] share of the training takes kept for choosing settings (eval.split)
        num_frames=16,  # [paper] frames per clip
        frame_stride=4,  # [paper] in stored frames
        crop_size=(128, 128),  # [paper] (height, width) in pixels
        crop_scales=(1.0, 0.875, 0.75, 0.66),  # [ours] VideoMAE's multi-scale crop
        repeats=2,  # [ours] VideoMAE's repeated augmentation: crops per decoded clip
        num_workers=8,  # [ours] reading processes per host; 0 = threads in the main process
        # Keeps decoded frames, so that each is decoded once. The batches are the same. auto keeps sets that fit.
        cache="auto",  # [ours] auto | off | memory; memory refuses a set that does not fit
        cache_gb=4.0,  # [ours] GB of memory that the frames of a set may take, per training process
    )

    config.augment = config_dict.create(
        randaugment_num_ops=4,  # [ours] VideoMAE's m7-n4-mstd0.5-inc1; 0 switches it off
        randaugment_magnitude=7.0,  # [ours] VideoMAE's, of 10
        randaugment_magnitude_std=0.5,  # [ours] VideoMAE's
        random_erasing=0.25,  # [ours] VideoMAE's probability that a box of a clip is replaced by noise
        flip=0.0,  # [ours] probability of a mirror image; refused where classes tell left from right
    )

    config.mix = config_dict.create(
        mixup_alpha=0.8,  # [ours] VideoMAE's; 0 switches mixup off
        cutmix_alpha=1.0,  # [ours] VideoMAE's; 0 switches CutMix off
        mix_probability=1.0,  # [ours] VideoMAE's: every step mixes
        cutmix_probability=0.5,  # [ours] VideoMAE's: half of the steps by CutMix
    )

    config.model = config_dict.create(
        variant="S",  # [paper] ViT Ti | S | B | L | H; as pre-trained
        width=config_dict.placeholder(int),  # [ours] overrides the variant's
        depth=config_dict.placeholder(int),  # [ours] overrides the variant's
        num_heads=config_dict.placeholder(int),  # [ours] overrides the variant's
        tubelet_size=(2, 16, 16),  # [paper] (frames, height, width) of one token; as pre-trained
        drop_path=0.1,  # [ours] VideoMAE's stochastic depth, of the last block; grows linearly from 0
        head_init_scale=0.001,  # [ours] VideoMAE's
        scan_layers=True,  # [ours] stacks the parameters of all blocks; the numbers are the same
        # rolled compiles one block instead of all; on an H200 a step of ViT-S took 1.29 times as long.
        layer_loop="auto",  # [ours] rolled | unrolled; auto is rolled on a CPU, else unrolled
        remat="auto",  # [ours] none | dots | block; auto is dots on TPU, else none
        # auto: per_head on TPU, cudnn on GPUs that can, chunked (in parts that fit its cache) on one CPU, else xla.
        attention="auto",  # [ours] xla | chunked | cudnn | per_head
        # A norm's scale and bias: folded into the weights of the layer that follows, or applied to the tokens.
        norm_affine="auto",  # [ours] folded | applied; auto is folded on a GPU without mesh.fsdp, faster there
    )

    config.loss = config_dict.create(
        label_smoothing=0.1  # [ours] VideoMAE's
    )

    config.optimizer = config_dict.create(
        name="adamw",  # [ours] adamw | muon
        base_learning_rate=5e-4,  # [ours] VideoMAE's; actual = base * global_batch_size / 256
        final_base_learning_rate=1e-6,  # [ours] VideoMAE's
        b1=0.9,  # [ours] VideoMAE's
        b2=0.999,  # [ours] VideoMAE's
        eps=1e-8,  # [ours] VideoMAE's
        weight_decay=0.05,  # [ours] VideoMAE's; not on biases and norms
        layer_decay=0.75,  # [ours] VideoMAE's; 1 trains all layers at the same rate
        clip_norm=config_dict.placeholder(float),  # [ours] global gradient norm; none, as VideoMAE
        accumulation_steps=1,  # [ours] a step's batch is computed in this many parts
        ema_decay=config_dict.placeholder(float),  # [ours] e.g. 0.9999 tests an average of the parameters
    )

    config.mesh, config.checkpoint, config.log, config.limits = base.mesh, base.checkpoint, base.log, base.limits

    config.eval = config_dict.create(
        every_steps=5000,  # [ours] also at the end of the run
        at_steps=(),  # [ours] further steps to evaluate at, e.g. (100, 200, 400)
        split="test",  # [ours] test | held_out: the held-out training takes, for choosing settings
        clips_per_view=5,  # [ours] VideoMAE's temporal clips of a test video
        crops_per_clip=3,  # [ours] VideoMAE's spatial crops of each; 1 is the centre
        batch_size=config_dict.placeholder(int),  # [ours] clips; default: global_batch_size
    )
    return config.lock()
