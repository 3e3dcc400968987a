"""Every key of a pre-training run, once, with its reason. Other configs state only what differs.

The values are the paper's setting for NTU RGB+D (ViT-S/16, 16 frames at stride 4, 128x128 pixels, 1600 epochs), except
for the temperature of the motion weights, which is solved for in each clip (see `loss`). The tag after each value says
where it comes from: [paper] is stated by the MV2MAE paper; [ours] was not found there and is chosen here, mostly from
VideoMAE's ViT-S recipe. `run.py` reads the tags and prints them when a run starts.

Command: this file is a base; run one of the configs built on it, e.g. `python run.py --config=configs/ntu60.py`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.create(
        task="pretrain",  # [ours] the objective; see mv2mae_jax/objectives
        seed=0,  # [ours] decides initialisation, data order, crops and masks
        # --- Length and batch -------------------------------------------------------------------------------------
        num_epochs=1600,  # [paper] one epoch = one pass over the (take, target view) elements
        total_steps=config_dict.placeholder(int),  # [ours] if set, replaces num_epochs
        warmup_epochs=40.0,  # [ours] VideoMAE's; at most a tenth of the run when total_steps is set
        global_batch_size=1024,  # [ours] samples (a target and its sources) per step, over all devices
        # `auto` computes in bfloat16 on TPU and GPU and in float32 on CPU; parameters are always float32.
        compute_dtype="auto",  # [ours] auto | float32 | bfloat16
        # A trained run to take parameters from; a fresh optimiser. Automatic resume of --workdir is separate.
        init_from="",  # [ours] the workdir of another run, a VideoMAE .pth, or a Hugging Face folder
        init_from_step=config_dict.placeholder(int),  # [ours] which checkpoint of that run; the newest by default
        profile_steps="",  # [ours] e.g. 100:105 traces the steps 100 to 104 for TensorBoard and xprof
    )

    config.data = config_dict.create(
        dir="",  # [ours] a directory made by `python -m data.prepare`; several, as a,b, are used as one set
        protocol="all",  # [ours] the catalogue's protocol whose training split is used; `all` uses every take
        classes=(),  # [ours] classes to use, by name or number, e.g. ("run", "walk"); empty = everything
        holdout_fraction=0.02,  # [ours] share of those takes held out for the reconstruction metrics
        num_frames=16,  # [paper] frames per clip
        frame_stride=4,  # [paper] in stored frames; 30 fps in NTU, so a clip spans 2 s
        crop_size=(128, 128),  # [paper] (height, width) in pixels
        crop_scales=(1.0, 0.875, 0.75, 0.66),  # [ours] VideoMAE's multi-scale crop; no flip: it breaks the geometry
        same_crop_in_views=False,  # [ours] True gives all views of a sample the same relative box
        num_source_views=1,  # [paper] more make the task too easy
        view_pairs=(),  # [ours] e.g. (("C002", "C003"),) as (target, source); empty = all pairs
        # host: 3 to 13 % of a core's time for a clip of JPEG. device: about 1 % of a step (docs/input.md).
        motion_on="host",  # [ours] host | device: where motion energies are computed; always the device with dct
        repeats=1,  # [ours] crops per decoded clip; a step still holds global_batch_size samples
        num_workers=8,  # [ours] reading processes per host; 0 = threads in the main process
        # Keeps decoded frames, so that each is decoded once. The batches are the same. auto keeps sets that fit.
        cache="auto",  # [ours] auto | off | memory; memory refuses a set that does not fit
        cache_gb=4.0,  # [ours] GB of memory that the frames of a set may take, per training process
    )

    config.model = config_dict.create(
        variant="S",  # [paper] ViT Ti | S | B | L | H
        width=config_dict.placeholder(int),  # [ours] overrides the variant's
        depth=config_dict.placeholder(int),  # [ours] overrides the variant's
        num_heads=config_dict.placeholder(int),  # [ours] overrides the variant's
        decoder_width=config_dict.placeholder(int),  # [ours] default: VideoMAE's for the variant (S: 192)
        decoder_depth=config_dict.placeholder(int),  # [ours] default: VideoMAE's for the variant (S: 4)
        decoder_heads=config_dict.placeholder(int),  # [ours] default: VideoMAE's for the variant (S: 3)
        tubelet_size=(2, 16, 16),  # [paper] (frames, height, width) of one token: 8x8x8 = 512 tokens
        cross_view=True,  # [paper] the cross-view decoder; False is a single-view masked autoencoder
        # joint: one decoder over the tokens of all views, in place of the paper's two; it requires cross_view=False.
        decoder="mv2mae",  # [ours] mv2mae | joint
        scan_layers=True,  # [ours] stacks the parameters of all blocks; the results are the same
        # rolled compiles one block instead of all; with it, a step of ViT-S took 1.29 times as long on an H200.
        layer_loop="auto",  # [ours] rolled | unrolled; auto is rolled on a CPU, else unrolled
        # What the backward pass recomputes instead of keeping: nothing, all but dense products, or whole blocks.
        remat="auto",  # [ours] none | dots | block; auto is dots on a TPU with mesh.fsdp, else none
        # per_head: the projections write each head separately; transposing heads afterwards takes a TPU longer.
        # auto: per_head on TPU, cudnn on GPUs that have it, chunked (in parts that fit its cache) on one CPU, else xla.
        attention="auto",  # [ours] xla | chunked | cudnn | per_head
        # A norm's scale and bias: folded into the weights of the layer that follows, or applied to the tokens.
        norm_affine="auto",  # [ours] folded | applied; auto is folded on a GPU without mesh.fsdp, faster there
    )

    config.masking = config_dict.create(
        kind="random",  # [paper] random | tube
        target_mask_ratio=0.7,  # [paper] share of the target view's tokens hidden from the encoder
        source_mask_ratio=0.7,  # [paper] the same for the source views; drawn independently [ours]
        decode_ratio=1.0,  # [ours] share of the masked tokens that are decoded (VideoMAEv2's running cells)
    )

    config.loss = config_dict.create(
        target="pixels",  # [ours] pixels | normalized_pixels; normalising amplifies noise in static patches
        error="squared",  # [ours] squared; of each value, then averaged over the patch
        cross_weight=1.0,  # [ours] lambda: total = self-view loss of every view + lambda * cross-view loss
        # If a temperature is set, it replaces ess_fraction. The paper does not say on which pixel scale t = 60 is: on
        # [0, 255] it weights one or two of 512 tokens, on [0, 1] all of them alike. ess_fraction needs no scale.
        temperature=config_dict.placeholder(float),  # [paper] t of the motion weights: 60; inf = plain MAE loss
        ess_fraction=0.6,  # [ours] t is solved per clip so that this share of the tokens carries the loss
        weighted_views="all",  # [ours] all | target: views whose tokens are weighted; others count evenly
        motion_pixel_range=255.0,  # [ours] pixel range of the motion energies; matters for a fixed temperature only
    )

    config.optimizer = config_dict.create(
        name="adamw",  # [paper] adamw | muon (optax.contrib; AdamW for everything that is not a matrix)
        base_learning_rate=1.5e-4,  # [ours] VideoMAE's; actual = base * global_batch_size / 256
        final_base_learning_rate=1e-5,  # [ours] VideoMAE's; the cosine ends here, scaled alike
        b1=0.9,  # [ours] VideoMAE's
        b2=0.95,  # [ours] VideoMAE's
        eps=1e-8,  # [ours] VideoMAE's
        weight_decay=0.05,  # [ours] VideoMAE's; not on biases, norms and mask tokens; under Muon 0.3 and 1 were better
        clip_norm=config_dict.placeholder(float),  # [ours] limit of the global gradient norm; none, as in VideoMAE
        accumulation_steps=1,  # [ours] a step's batch is computed in this many parts; the result is the same
        ema_decay=config_dict.placeholder(float),  # [ours] e.g. 0.9999 keeps an average of the parameters
    )

    config.mesh = config_dict.create(
        data=-1,  # [ours] devices over which parameters are replicated; -1 = all that are left
        fsdp=1,  # [ours] devices over which parameters and optimiser state are split; the batch is split over both axes
    )

    config.checkpoint = config_dict.create(
        every_steps=1000,  # [ours] asynchronous, so frequent ones are cheap
        keep=3,  # [ours] newest steps kept on disk
    )

    config.eval = config_dict.create(
        every_steps=5000,  # [ours] reconstruction metrics on held-out takes; also at the end of the run
        at_steps=(),  # [ours] further steps at which to evaluate, e.g. (100, 200, 400)
        max_takes=256,  # [ours] held-out takes evaluated; all their target views
        clips_per_element=1,  # [ours] clips per (take, target view); more lower the standard errors over takes
        batch_size=config_dict.placeholder(int),  # [ours] default: global_batch_size
        # kNN (k = 20) from training to held-out takes where labels are known, and retrieval across cameras.
        max_feature_takes=0,  # [ours] training takes whose features are used, e.g. 1000; 0 switches it off
        num_pictures=4,  # [ours] samples drawn by mv2mae_jax/evaluation/visualize.py at each evaluation
        picture_blur_sigma=0.0,  # [ours] pixels; blurs the pictures where a licence requires unrecognisable faces
    )

    config.limits = config_dict.create(
        skipped_updates=10,  # [ours] the run stops after so many in a row (loss or gradients not finite)
        damaged_samples=0.01,  # [ours] share of the samples that may be damaged and replaced; more stops the run
        # If one of several processes is killed, or its host vanishes, the others end after this time.
        heartbeat_timeout_seconds=100,  # [ours] JAX's default; a host that is moved can be silent for a minute
    )

    config.log = config_dict.create(
        every_steps=50,  # [ours] a progress line, TensorBoard scalars, and a row of history.jsonl
        tensorboard=True,  # [ours] event files in WORKDIR/tensorboard
        report=True,  # [ours] WORKDIR/report.html at the end; see `python -m mv2mae_jax.report --help`
    )
    return config.lock()
