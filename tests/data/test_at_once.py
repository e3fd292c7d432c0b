"""Several at work on one dataset or one file: each sees the old or the new whole, and none stops another."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ginseng import GinsengClassifierTrainer, GinsengClassifierTrainerSettings, GinsengDataset, load_model, save_model
from ginseng.model.instance import GinsengClassifier
from ginseng.model.state import GinsengClassifierState
from tests.conftest import SUBPROCESS_ENVIRONMENT

SPLITTER = """
import sys, itertools
from ginseng import GinsengDataset
dataset = GinsengDataset(sys.argv[1])
print("ready", flush=True)
for seed in itertools.count():
    dataset.make_split((0.1, 0.25, 0.5)[seed % 3], seed=seed)
"""


def test_eight_readers_beside_a_process_that_replaces_splits(dataset):
    dataset.make_split(0.1)
    command = [sys.executable, "-c", SPLITTER, str(dataset.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=SUBPROCESS_ENVIRONMENT) as splitter:
        assert splitter.stdout.readline() == "ready\n"

        def read(nth):
            sizes = set()
            for epoch in range(5):
                own = GinsengDataset(dataset.path)
                parts = own.train_idx, own.test_idx
                np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(120))
                seen = sum(len(x) for x, _ in own.stream(16, "train", rng=epoch, memory=("1 GB", "3 kB")[nth % 2]))
                assert seen == len(parts[0])
                sizes.add(seen)
            return sizes

        try:
            with ThreadPoolExecutor(8) as readers:
                sizes = set.union(*readers.map(read, range(8)))
        finally:
            splitter.kill()
    assert sizes <= {108, 90, 60}
    assert len(sizes) > 1


def test_two_trainers_on_one_dataset(dataset):
    """Neither has a split to begin with: each trains on its own, and one of the two stays."""
    settings = [GinsengClassifierTrainerSettings(hidden_dim=8, batch_size=32, seed=s, calibrate="none") for s in (1, 2)]
    begin = threading.Barrier(2)

    def train(chosen):
        own = GinsengDataset(dataset.path)
        begin.wait()
        trainer = GinsengClassifierTrainer(own, chosen)
        trainer.fit(2, silent=True)
        return own.train_idx, trainer.logger.train_loss

    with ThreadPoolExecutor(2) as trainers:
        ends = list(trainers.map(train, settings))
    assert np.isfinite([loss for _, losses in ends for loss in losses]).all()
    kept = GinsengDataset(dataset.path).train_idx
    assert any(np.array_equal(np.sort(kept), np.sort(train)) for train, _ in ends)


def test_two_writers_of_one_model_file(tmp_path):
    def state(seed):
        model = GinsengClassifier(n_genes=40, n_classes=2, hidden_dim=4, seed=seed)
        genes = [f"g{nth}" for nth in range(40)]
        sizes = {"n_genes": 40, "n_classes": 2, "hidden_dim": 4, "normalize": True, "target_sum": 1e4}
        return GinsengClassifierState(model.params, genes, ["a", "b"], [0, 1], **sizes, dropout_rate=0.2)

    states = [state(seed) for seed in (1, 2)]
    save_model(states[0], tmp_path / "m.h5")
    weights = [np.asarray(one.params["head"]["W"]) for one in states]
    is_over = threading.Event()

    def write(one):
        for _ in range(8):
            save_model(one, tmp_path / "m.h5")

    def read():
        found = 0
        while not is_over.is_set() or not found:
            head = np.asarray(load_model(tmp_path / "m.h5").params["head"]["W"])
            assert any(np.array_equal(head, known) for known in weights)
            found += 1
        return found

    with ThreadPoolExecutor(3) as pool:
        reader = pool.submit(read)
        for writer in [pool.submit(write, one) for one in states]:
            writer.result()
        is_over.set()
        assert reader.result() > 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]
