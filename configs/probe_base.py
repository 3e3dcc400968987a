"""Every key of a probe of frozen features, once, with its reason: kNN, linear and attentive probes, retrieval.

Features of every view are extracted once and kept in WORKDIR/features. Settings of the probes are chosen on takes cut
off the training split, never on the test split.

Command: this file is a base; see configs/probe.py and configs/retrieval.py.
"""

from ml_collections import config_dict

from configs import finetune_base


def get_config() -> config_dict.ConfigDict:
    base = finetune_base.get_config()
    config = config_dict.create(
        task="probe",  # [ours] mv2mae_jax/evaluation/probe.py
        seed=0,  # [ours] decides the probes' initialisation and batches
        global_batch_size=64,  # [ours] clips per step of the feature extraction, over all devices
        compute_dtype="auto",  # [ours] auto | float32 | bfloat16
        # As for fine-tuning; `random` is an encoder as initialised, `pixels` takes the clip's own pixels as tokens.
        init_from="",  # [ours] RUN | random | pixels
        init_from_step=config_dict.placeholder(int),  # [ours] which checkpoint of that run; the newest by default
    )

    config.data = config_dict.create(
        dir="",  # [ours] a directory made by `python -m data.prepare`; several, as a,b, are used as one set
        protocol="xsub",  # [ours] the catalogue's protocol; its training split trains, its test split tests
        classes=(),  # [ours] classes to use, by name or number, e.g. ("run", "walk"); empty = everything
        train_views=(),  # [ours] e.g. ("C002", "C003"); empty = all views of the training split
        labels_per_class=config_dict.placeholder(int),  # [ours] takes per class; none = the full training split
        label_seed=0,  # [ours] selects those takes
        num_frames=16,  # [paper] frames per clip
        frame_stride=4,  # [paper] in stored frames
        crop_size=(128, 128),  # [paper] (height, width) in pixels
        num_workers=8,  # [ours] reading processes per host; 0 = threads in the main process
        # Keeps decoded frames, so that each is decoded once. The batches are the same. auto keeps sets that fit.
        cache="auto",  # [ours] auto | off | memory; memory refuses a set that does not fit
        cache_gb=4.0,  # [ours] GB of memory that the frames of a set may take, per training process
    )

    config.model = config_dict.create(
        variant="S",  # [paper] as pre-trained, like the next four
        width=config_dict.placeholder(int),  # [ours] overrides the variant's
        depth=config_dict.placeholder(int),  # [ours] overrides the variant's
        num_heads=config_dict.placeholder(int),  # [ours] overrides the variant's
        tubelet_size=(2, 16, 16),  # [paper] (frames, height, width) of one token
        scan_layers=True,  # [ours] stacks the parameters of all blocks; the numbers are the same
        # rolled compiles one block instead of all; on an H200 a step of ViT-S took 1.29 times as long.
        layer_loop="auto",  # [ours] rolled | unrolled; auto is rolled on a CPU, else unrolled
        remat="none",  # [ours] nothing is differentiated here
        # auto: per_head on TPU, cudnn on GPUs that can, chunked (in parts that fit its cache) on one CPU, else xla.
        attention="auto",  # [ours] xla | chunked | cudnn | per_head
        # A norm's scale and bias: folded into the weights of the layer that follows, or applied to the tokens.
        norm_affine="auto",  # [ours] folded | applied; auto is folded on a GPU without mesh.fsdp, faster there
    )

    config.probe = config_dict.create(
        # ridge: classes by ridge regression of all tokens, each at its place. geometry: 3D joints, motion: their
        # velocities, by ridge regression, with attentive also by attention; both need a set that knows its joints
        # (docs/data_sets.md).
        kinds=("knn", "linear", "attentive", "retrieval"),  # [ours] any of these, ridge, geometry, motion
        # What kNN, linear probe and retrieval see. mean: of all tokens; slices: the mean of each temporal slice;
        # motion: the same, weighted by motion. Cameras that stand still then leave the room out.
        pooling="mean",  # [ours] mean | slices | motion
        # Channels with a large value in all clips make all cosine similarities alike.
        standardize=False,  # [ours] retrieval sees channels standardised over the clips searched
        knn_k=20,  # [ours] neighbours by cosine similarity
        learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),  # [ours] tried by the linear and the attentive probe
        weight_decays=(0.0, 0.01, 0.1),  # [ours] tried with each learning rate
        epochs=50,  # [ours] passes of a probe over the training features
        batch_size=256,  # [ours] clips per step of a probe
        validation_fraction=0.2,  # [ours] share of the training takes on which settings are chosen
    )

    config.eval = config_dict.create(
        clips_per_view=1  # [ours] temporal clips per view; the probabilities of several are averaged
    )
    config.log = config_dict.create(
        report=True  # [ours] WORKDIR/report.html at the end; see `python -m mv2mae_jax.report --help`
    )
    config.mesh = base.mesh
    return config.lock()
