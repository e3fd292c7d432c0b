"""What a training step takes at least: batch size, genes, types."""

import sys
import time

import jax
import jax.numpy as jnp
from reporting import report

HIDDEN = 64


def seconds_of(function, *args, repeats=15):
    """Median time of a compiled function."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def memory_bandwidth(n_values=2**26, repeats=9):
    """Bytes per second, read and written, of an addition in place."""
    values, times = jnp.ones(n_values), []
    add = jax.jit(lambda a: a + 1, donate_argnums=0)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        values = jax.block_until_ready(add(values))
        times.append(time.perf_counter() - start)
    return 2 * values.nbytes / sorted(times[1:])[repeats // 2]


batch_size, n_genes, n_types = map(int, sys.argv[1:])
layers = [(n_genes, n_genes), (n_genes, n_genes), (n_genes, HIDDEN), (HIDDEN, n_genes), (n_genes, n_types)]
products = 0.0
for number, (n_in, n_out) in enumerate(layers):
    x, w, y = (jnp.ones(shape) for shape in ((batch_size, n_in), (n_in, n_out), (batch_size, n_out)))
    products += seconds_of(jnp.matmul, x, w) + seconds_of(lambda x, y: x.T @ y, x, y)
    if number > 0:  # nothing needs the gradient of the counts
        products += seconds_of(lambda y, w: y @ w.T, y, w)
n_parameters = 2 * n_genes**2 + 2 * n_genes * HIDDEN + n_genes * n_types
bandwidth = memory_bandwidth()
traffic = 7 * 4 * n_parameters / bandwidth  # read parameters, gradients, moments; write parameters, moments
report(
    cells=batch_size,
    cells_per_second=round(batch_size / (products + traffic)),
    matrix_products_ms=round(1e3 * products, 2),
    parameter_traffic_ms=round(1e3 * traffic, 2),
    bandwidth_GB_per_second=round(bandwidth / 1e9, 1),
    floor_of_memory_MiB=round(4 * 4 * n_parameters / 2**20),
)
