"""Flax Linen modules. They know no devices, no data pipeline and no optimiser."""
