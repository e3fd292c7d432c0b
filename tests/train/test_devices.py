"""Several devices train as one does."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

from ginseng import (
    GinsengClassifier,
    GinsengClassifierState,
    GinsengClassifierTrainer,
    GinsengDataset,
    classify,
    save_model,
)
from ginseng.utils.devices import Devices
from tests.conftest import COMPILED_FAST, SUBPROCESS_ENVIRONMENT, simulate
from tests.train.models import QUICK

ANNOTATE = """
import sys
import anndata, jax
folder, port, index = sys.argv[1], *map(int, sys.argv[2:])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
import ginseng
for devices in (None, 1, jax.local_devices()):
    table = ginseng.classify(
        f"{folder}/m.h5", f"{folder}/cells{index}.h5ad", return_table=True, silent=True, batch_size=7, devices=devices
    )
    table.to_pickle(f"{folder}/table{index}.pkl")
try:
    ginseng.classify(f"{folder}/m.h5", f"{folder}/cells{index}.h5ad", return_table=True, devices=jax.devices())
except ValueError as error:
    assert "must be those of this process" in str(error), error
else:
    raise AssertionError("devices of the other process were taken")
"""

FIT = """
import json, sys
import jax
folder, n_processes, index, port, batch_size, memory = sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6]
if n_processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", n_processes, index)
import ginseng
recipe = {"hidden_dim": 8, "lr": 5e-3, "balance_train": "none", "ema": 0.9}
settings = ginseng.GinsengClassifierTrainerSettings(batch_size=batch_size, **recipe)
trainer = ginseng.GinsengClassifierTrainer(folder, settings, memory=memory or None)
name = f"{folder}.run{n_processes}{jax.device_count()}"
trainer.fit(3, silent=True, checkpoint=name, log=name + ".csv")
ginseng.save_model(ginseng.state_from_classifier_trainer(trainer), f"{folder}.model{index}.h5")
metrics = trainer.logger.train_loss, trainer.logger.holdout_loss, trainer.logger.holdout_macro_f1
print(json.dumps([jax.device_count(), *metrics]))
with open(name + ".csv") as file:
    assert len(file.readlines()) == 4, "a header and a row for each epoch, once"
"""


@pytest.fixture
def start(tmp_path):
    """Start a fit in a process of its own; give a function that waits for its metrics."""
    path = tmp_path / "cells.zarr"
    GinsengDataset.create(path, simulate(), "cell_type", silent=True).make_split(0.2)

    def begin(*, n_devices=1, n_processes=1, index=0, port=0, batch_size=32, memory=""):
        args = [path, n_processes, index, port, batch_size, memory]
        flags = f"{COMPILED_FAST} --xla_force_host_platform_device_count={n_devices}"
        process = subprocess.Popen(
            [sys.executable, "-c", FIT, *map(str, args)],
            stdout=subprocess.PIPE,
            text=True,
            env={**SUBPROCESS_ENVIRONMENT, "XLA_FLAGS": flags},
        )

        def wait():
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0
            return json.loads(output.strip().splitlines()[-1])

        return wait

    return begin


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_four_devices_and_two_processes_train_as_one_device_does(start):
    port = free_port()
    runs = [start(), start(n_devices=4), start(n_devices=3)]
    runs += [start(n_processes=2, index=index, port=port) for index in range(2)]
    (_, *one), (four_devices, *four), (_, *three), (two_devices, *first), (_, *second) = (wait() for wait in runs)
    assert (four_devices, two_devices) == (4, 2)
    np.testing.assert_allclose(four, one, rtol=0, atol=1e-5)
    np.testing.assert_allclose(first, one, rtol=0, atol=1e-5)
    assert first == second
    np.testing.assert_allclose(three, one, rtol=0, atol=1e-5)  # batches are padded to a multiple of three


def test_two_processes_share_what_is_read_beyond_memory(start):
    port = free_port()
    runs = [start(memory="3 kB"), *(start(n_processes=2, index=i, port=port, memory="3 kB") for i in range(2))]
    (_, *one), (_, *first), (_, *second) = (wait() for wait in runs)
    np.testing.assert_allclose(first, one, rtol=0, atol=1e-5)
    assert first == second


def test_each_of_two_processes_annotates_its_own_cells(tmp_path):
    trained = GinsengClassifier(30, 3, hidden_dim=4, seed=0)
    sizes = {"n_genes": 30, "n_classes": 3, "hidden_dim": 4}
    adatas = simulate(n_cells=50), simulate(n_cells=23, seed=1)
    genes, labels = adatas[0].var_names.to_numpy(), ["B", "NK", "T"]
    state = GinsengClassifierState(trained.params, genes, labels, [0, 1, 2], **sizes, **trained.options)
    save_model(state, tmp_path / "m.h5")
    port, processes = free_port(), []
    for index, adata in enumerate(adatas):
        adata.write_h5ad(tmp_path / f"cells{index}.h5ad")
        flags = f"{COMPILED_FAST} --xla_force_host_platform_device_count={index + 2}"
        arguments = [sys.executable, "-c", ANNOTATE, str(tmp_path), str(port), str(index)]
        environment = {**SUBPROCESS_ENVIRONMENT, "XLA_FLAGS": flags}
        processes.append(subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment))
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    for index, adata in enumerate(adatas):
        found, expected = pd.read_pickle(tmp_path / f"table{index}.pkl"), classify(state, adata, return_table=True)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)


class TestDevices:
    def test_the_devices_that_are_asked_for(self):
        assert Devices().padded(10) == 10
        assert Devices(1).padded(10) == Devices(jax.devices()[:1]).padded(10) == 10

    @pytest.mark.parametrize("number", [0, 99])
    def test_as_many_as_there_are(self, dataset, number):
        with pytest.raises(ValueError, match=f"`devices` m.* at (least|most) .* but got {number}"):
            GinsengClassifierTrainer(dataset, QUICK, devices=number)


@pytest.mark.parametrize("memory", [None, "3 kB"])
def test_shares_of_batches_make_up_the_batches(dataset, memory):
    whole = list(dataset.stream(32, "all", rng=3, memory=memory))
    shares = [list(dataset.stream(32, "all", rng=3, memory=memory, share=(i, 4), drop_last=False)) for i in range(4)]
    for nth, (x, y) in enumerate(whole):
        parts = [share[nth] for share in shares if nth < len(share)]
        np.testing.assert_array_equal(np.vstack([part for part, _ in parts]), x)
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), y)


def test_shares_must_be_equal(dataset):
    with pytest.raises(ValueError, match="Batches of 32 cells have no share 1 of 3 equal ones"):
        dataset.stream(32, "all", share=(1, 3))
    with pytest.raises(ValueError, match="no share 2 of 2"):
        dataset.stream(32, "all", share=(2, 2))
