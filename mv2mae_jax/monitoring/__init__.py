"""What a run tells while it goes: log lines, TensorBoard, rates, FLOP, and what it watches (skips, spikes, damage).

Used by the loop and by evaluation/probe.py. Imports runs/, distributed/ and config.
"""
