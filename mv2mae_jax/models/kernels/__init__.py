"""Faster forms of what the layers compute. `layers` calls them; they know arrays alone. Each stands for a measurement:

attention.py  in chunks of heads, for a CPU's cache        python -m benchmarks.attention
              cuDNN's, on NVIDIA's GPUs                    benchmarks/results/NOTES_speed.md
dense.py      products of two matrices on CPUs             python -m benchmarks.dense_2d
              products that read and write heads on TPUs   benchmarks/results/NOTES_tpu.md
norms.py      scale and bias folded into the next layer    benchmarks/results/NOTES_speed.md
              gradients of LayerNorm written out           benchmarks/results/NOTES_speed.md, NOTES_tpu.md
gelu.py       by erf, only its input kept                  python -m benchmarks.gelu

Imports: nothing.
Used by: models.
"""
