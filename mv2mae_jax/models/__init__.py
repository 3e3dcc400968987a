"""Flax modules and what surrounds them: sizes, tubelets and masks, frozen encoders, frames stored as coefficients.

They know no objective, no optimiser and no run. Of the devices only compute.py asks, once, to settle what is `auto`;
layers.py calls distributed/sharding.py where weights are to be gathered.
Imports: models/kernels, distributed, data, console.
Used by: objectives, evaluation, features, inference.py, runs, torch_weights, torch_export, report, topology.
"""
