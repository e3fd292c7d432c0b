"""The network's five matrix products on one batch of 256 cells, again and again: model."""

import sys
import time

import jax
import jax.numpy as jnp
import jax.random as jr
from reporting import report

from ginseng.data.io import load_model

BATCH, N_BATCHES = 256, 64

state = load_model(sys.argv[1])
weights = [jnp.asarray(state.params[layer]["W"]) for layer in ("features1", "features2", "attn1", "attn2", "head")]


@jax.jit
def products(x, weights):
    for w in weights:
        x = x @ w
    return x


x, times = jr.uniform(jr.key(0), (BATCH, weights[0].shape[0])), []
jax.block_until_ready(products(x, weights))
cpu_start = time.process_time()
for _ in range(N_BATCHES):
    start = time.perf_counter()
    jax.block_until_ready(products(x, weights))
    times.append(time.perf_counter() - start)
cpu_seconds = time.process_time() - cpu_start
report(
    cells=BATCH * N_BATCHES,
    cells_per_second=round(BATCH / sorted(times)[N_BATCHES // 2]),
    cells_per_CPU_second=round(BATCH * N_BATCHES / cpu_seconds),
)
