"""Every key of a probe of frozen features, once, with its reason: kNN, linear and attentive probes, retrieval.

Features of every view are extracted once and kept in WORKDIR/features. Settings of the probes are chosen on takes cut
off the training split, never on the test split. The sections data, model and mesh are those of finetune_base.py,
without the keys of training.

Command: this file is a base; see configs/probe.py and configs/retrieval.py.
"""

from ml_collections import config_dict

from configs import finetune_base


def get_config() -> config_dict.ConfigDict:
    base = finetune_base.get_config().unlock()
    for key in ("holdout_fraction", "crop_scales", "repeats"):  # of training alone, like the next ones
        del base.data[key]
    for key in ("drop_path", "head_init_scale"):
        del base.model[key]
    config = config_dict.create(
        task="probe",  # [ours] mv2mae_jax/evaluation/probe.py
        seed=0,  # [ours] decides the probes' initialisation and batches
        global_batch_size=64,  # [ours] clips per step of the feature extraction, over all devices
        compute_dtype="auto",  # [ours] auto | float32 | bfloat16
        # As for fine-tuning; `random` is an encoder as initialised, `pixels` takes the clip's own pixels as tokens.
        init_from="",  # [ours] RUN | random | pixels
        init_from_step=config_dict.placeholder(int),  # [ours] which checkpoint of that run; the newest by default
    )

    config.data, config.model = base.data, base.model
    config.model.remat = "none"  # [ours] nothing is differentiated here

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
