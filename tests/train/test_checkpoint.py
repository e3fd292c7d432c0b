"""A run that was killed ends as one that was not."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
from contextlib import contextmanager

import h5py
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
import pytest

from ginseng import (
    AttentionClassifier,
    GinsengClassifierTrainer,
    GinsengDataset,
    Trainer,
    adam_l2,
    load_model,
)
from ginseng.train import Recipe, Sampling
from ginseng.train.checkpoint import Checkpoint
from ginseng.utils.hdf5 import contents_digest
from tests.conftest import SUBPROCESS_ENVIRONMENT
from tests.train.models import QUICK, assert_same_weights, attention

FIT = """
import sys
import ginseng
from ginseng.train.checkpoint import Checkpoint
folder, out = sys.argv[1:]
recipe = {"hidden_dim": 8, "batch_size": 1, "lr": 5e-4, "patience": 5, "seed": 4, "calibrate": "none"}
settings = ginseng.GinsengClassifierTrainerSettings(**recipe)
trainer = ginseng.GinsengClassifierTrainer(folder + "/cells.zarr", settings)
step = ginseng.Trainer._train_step
def announced(*args):
    print("step", flush=True)
    return step(*args)
ginseng.Trainer._train_step, Checkpoint.is_due = announced, True
trainer.fit(8, silent=True, checkpoint=folder + "/run")
ginseng.save_model(ginseng.state_from_classifier_trainer(trainer), out)
"""


@contextmanager
def edited(path):
    """A checkpoint to change, whole afterwards: as one of another version would be."""
    with h5py.File(path, "r+") as file:
        yield file
        file.attrs["digest"] = contents_digest(file, ("description", "records", "leaves"))


def by_table(rate):
    """A schedule that holds an array."""
    table = rate * jnp.linspace(0.1, 0.01, 100)
    return lambda step: table[step]


def times(factors):
    return lambda key, x: x * factors


class Killed(BaseException):
    pass


@pytest.fixture
def killed_after(monkeypatch):
    """Save after each call of the compiled steps, and die after so many saves."""
    monkeypatch.setattr(Checkpoint, "is_due", True)

    def arrange(n_saves):
        save, n_left = Checkpoint.save, n_saves

        def dying(self, run):
            nonlocal n_left
            save(self, run)
            n_left -= 1
            if n_left == 0:
                raise Killed

        monkeypatch.setattr(Checkpoint, "save", dying)

    return arrange


RUNS = {
    "default": {},
    "everything": {
        "balance_train": "resample",
        "patience": 2,
        "ema": 0.9,
        "clip": 1.0,
        "rate": 0.1,
        "schedule": "cosine",
        "precision": "bfloat16",
        "class_weights": "balanced",
        "label_smoothing": 0.1,
    },
}


class TestResumption:
    @pytest.mark.parametrize("n_saves", [1, 2, 3, 8])
    @pytest.mark.parametrize(("options", "memory"), [("default", "3 kB"), ("everything", None)])
    def test_it_ends_with_the_same_weights_bit_by_bit(
        self, dataset, tmp_path, killed_after, monkeypatch, n_saves, options, memory
    ):
        settings = dataclasses.replace(QUICK, batch_size=4, lr=5e-4, **RUNS[options])  # two calls in each epoch

        def run(**kept):
            trainer = GinsengClassifierTrainer(dataset, settings, memory=memory)
            trainer.fit(4, silent=True, **kept)
            return trainer

        with monkeypatch.context():
            expected = run()
        killed_after(n_saves)
        with pytest.raises(Killed):
            run(checkpoint=tmp_path / "run")
        monkeypatch.undo()
        resumed = run(checkpoint=tmp_path / "run")
        assert_same_weights(resumed.model, expected.model)
        assert_same_weights(resumed.classifier.module, resumed.model)
        assert dataclasses.asdict(resumed.logger) == dataclasses.asdict(expected.logger)
        assert resumed.holdout_scores.confusion.equals(expected.holdout_scores.confusion)
        again = run(checkpoint=tmp_path / "run")
        assert_same_weights(again.model, expected.model)
        assert again.logger.epoch == expected.logger.epoch

    def test_after_kill_9(self, dataset, tmp_path):
        dataset.make_split(0.2)
        command = [sys.executable, "-c", FIT, str(tmp_path)]
        options = {"text": True, "env": SUBPROCESS_ENVIRONMENT}
        with subprocess.Popen([*command, str(tmp_path / "resumed.h5")], stdout=subprocess.PIPE, **options) as process:
            for _ in range(20):
                assert process.stdout.readline() == "step\n"
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "resumed.h5").exists()
        done = subprocess.run([*command, str(tmp_path / "resumed.h5")], capture_output=True, check=True, **options)
        n_steps = done.stdout.count("step")
        (tmp_path / "run").rename(tmp_path / "first")
        done = subprocess.run([*command, str(tmp_path / "whole.h5")], capture_output=True, check=True, **options)
        assert 0 < n_steps < done.stdout.count("step")
        resumed, whole = (load_model(tmp_path / f"{name}.h5") for name in ("resumed", "whole"))
        assert_same_weights(resumed.params, whole.params)
        assert resumed.metadata["history"] == whole.metadata["history"]

    def test_any_model_and_optimizer(self, dataset, tmp_path, killed_after, monkeypatch):
        def run(**kept):
            recipe = Recipe(optimizer=optax.chain(optax.clip(1.0), optax.lion(1e-3)))
            return Trainer(attention(), dataset, recipe, Sampling(batch_size=5)).fit(3, silent=True, **kept)

        killed_after(2)
        with pytest.raises(Killed):
            run(checkpoint=tmp_path / "run")
        monkeypatch.undo()
        assert_same_weights(run(checkpoint=tmp_path / "run"), run())


class TestKept:
    def test_states_of_any_type(self, dataset, tmp_path):
        """PRNG keys and bfloat16, for which HDF5 has no types."""

        def run(**kept):
            optimizer = optax.chain(optax.add_noise(0.1, 0.5, 1), optax.adam(1e-3, mu_dtype=jnp.bfloat16))
            return Trainer(attention(), dataset, Recipe(optimizer=optimizer)).fit(2, silent=True, **kept)

        assert_same_weights(run(checkpoint=tmp_path / "run"), run(checkpoint=tmp_path / "run"))

    def test_settings_of_numpy(self, dataset, tmp_path):
        trainer = Trainer(attention(), dataset, sampling=Sampling(batch_size=np.int64(32), seed=np.int64(3)))
        for _ in range(2):
            assert_same_weights(trainer.fit(0, silent=True, checkpoint=tmp_path / "run"), trainer.model)

    def test_it_says_where_it_goes_on(self, dataset, tmp_path, capsys):
        for _ in range(2):
            GinsengClassifierTrainer(dataset, QUICK).fit(1, checkpoint=tmp_path / "run")
        assert "run: the run has ended" in capsys.readouterr().out

    def test_an_epoch_is_logged_once(self, dataset, tmp_path, monkeypatch):

        def killed(self, run):
            if run.epoch == 2:
                raise Killed
            save(self, run)

        save = Checkpoint.save
        for name in ("run.csv", "run.jsonl"):
            with monkeypatch.context() as patched, pytest.raises(Killed):
                patched.setattr(Checkpoint, "save", killed)
                trainer = GinsengClassifierTrainer(dataset, QUICK)
                trainer.fit(3, silent=True, checkpoint=tmp_path / name[4:], log=tmp_path / name)
            trainer = GinsengClassifierTrainer(dataset, QUICK)
            trainer.fit(3, silent=True, checkpoint=tmp_path / name[4:], log=tmp_path / name)
            read = pd.read_csv if name == "run.csv" else lambda path: pd.read_json(path, lines=True)
            assert read(tmp_path / name)["epoch"].tolist() == [1, 2, 3]


class TestRefusals:
    @pytest.fixture
    def folder(self, dataset, tmp_path):
        GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, checkpoint=tmp_path / "run")
        return tmp_path / "run"

    @pytest.mark.parametrize(
        ("changes", "epochs", "named"),
        [
            ({"lr": 1e-4}, 1, "lr was 0.005, now 0.0001"),
            ({"seed": 9}, 1, "seed was 1, now 9"),
            ({"batch_size": 16}, 1, "batch_size was 32, now 16"),
            ({"weight_decay": 0.5}, 1, "weight_decay was 0.01, now 0.5"),
            ({}, 2, r"epochs was \[0, 1\], now \[0, 2\]"),
        ],
    )
    def test_other_settings(self, dataset, folder, changes, epochs, named):
        before = (folder / "checkpoint.h5").read_bytes()
        trainer = GinsengClassifierTrainer(dataset, dataclasses.replace(QUICK, **changes))
        with pytest.raises(ValueError, match=f"holds another run.*({named}).*name another directory"):
            trainer.fit(epochs, silent=True, checkpoint=folder)
        assert (folder / "checkpoint.h5").read_bytes() == before

    def test_another_version_of_jax(self, dataset, folder):
        """A step that is traced in another way by another version is told from another step."""

        def resume():
            GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, checkpoint=folder)

        def describe(**changes):
            with edited(folder / "checkpoint.h5") as file:
                description = json.loads(file["description"][()]) | changes
                del file["description"]
                file["description"] = json.dumps(description)

        describe(versions={"jax": "0.4.0", "jaxlib": "0.4.0", "equinox": "0.1", "optax": "0.1"})
        resume()
        describe(**{"model, optimizer and loss": "another"})
        with pytest.raises(ValueError, match=r"saved with jax 0.4.0.* This is jax .* install those versions to go on"):
            resume()
        describe(devices=2)
        with pytest.raises(ValueError, match=r"holds another run \(devices was 2, now 1"):
            resume()
        describe(devices=1, seed=9)
        with pytest.raises(ValueError, match=r"holds another run \(seed was 9, now 1"):
            resume()

    def test_weights_are_named_by_their_place_in_the_model(self, folder):
        with h5py.File(folder / "checkpoint.h5") as file:
            assert file["leaves/[0].params.head.weight"].shape == (3, 30)

    def test_a_leaf_that_is_missing(self, dataset, folder):
        with edited(folder / "checkpoint.h5") as file:
            del file["leaves/[0].params.head.weight"]
        with pytest.raises(ValueError, match="is of another model or optimiser"):
            GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, checkpoint=folder)

    def test_other_data(self, dataset, folder):
        dataset.make_split(0.5)
        with pytest.raises(ValueError, match="holds another run .*cells was"):
            GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, checkpoint=folder)

    @pytest.mark.parametrize(
        ("before", "changes"),
        [
            ({}, {"optimizer": optax.sgd(0.1)}),
            ({}, {"optimizer": adam_l2(1e-1)}),
            ({"optimizer": optax.sgd(by_table(1.0))}, {"optimizer": optax.sgd(by_table(0.5))}),
            ({}, {"augment": lambda key, x: x + 1}),
            ({"augment": times(np.arange(30.0))}, {"augment": times(np.arange(30.0) + 1)}),
            ({"augment": jax.jit(times(jnp.ones(30)))}, {"augment": jax.jit(times(jnp.zeros(30)))}),
            ({}, {"class_weights": {"B cell": 2.0}}),
            ({"class_weights": {"B cell": 2.0}}, {"class_weights": {"B cell": 5.0}}),
            ({}, {"label_smoothing": 0.1}),
            ({}, {"model": AttentionClassifier(30, 3, 8, dropout_rate=0.5, key=jr.key(0))}),
        ],
        ids=lambda changes: next(iter(changes), ""),
    )
    def test_another_step(self, dataset, tmp_path, before, changes):
        def fit(model=None, **recipe):
            model = attention() if model is None else model
            Trainer(model, dataset, Recipe(**recipe)).fit(1, silent=True, checkpoint=tmp_path / "run")

        fit(**before)
        fit(**before)
        with pytest.raises(ValueError, match="holds another run"):
            fit(**{**before, **changes})

    def test_other_counts_of_the_same_cells(self, adata, tmp_path):
        for factor in (1, 2):
            adata.X = adata.X * factor
            dataset = GinsengDataset.create(tmp_path / "cells.zarr", adata, "cell_type", silent=True)
            if factor == 1:
                Trainer(attention(), dataset).fit(1, silent=True, checkpoint=tmp_path / "run")
        with pytest.raises(ValueError, match="holds another run .cells was"):
            Trainer(attention(), dataset).fit(1, silent=True, checkpoint=tmp_path / "run")

    def test_a_folder_that_cannot_be_written_is_named_before_training(self, dataset, tmp_path):
        (tmp_path / "file").write_text("")
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        with pytest.raises(ValueError, match="is not a folder that you may write to"):
            trainer.fit(1, silent=True, checkpoint=tmp_path / "file")
        with pytest.raises(ValueError, match="is not a folder that you may write to"):
            trainer.fit(1, silent=True, log=tmp_path / "file" / "run.csv")
        assert trainer.logger.epoch == []

    def test_a_damaged_file(self, dataset, folder):
        (folder / "checkpoint.h5").write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match=r"checkpoint.h5 is not an HDF5 file, or it is truncated"):
            GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, checkpoint=folder)

    def test_flipped_bits_change_nothing_in_silence(self, dataset, folder):
        ended = GinsengClassifierTrainer(dataset, QUICK).fit(1, silent=True, checkpoint=folder)
        content, rng, refused = (folder / "checkpoint.h5").read_bytes(), random.Random(0), 0
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        for _ in range(40):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (folder / "checkpoint.h5").write_bytes(flipped)
            try:
                assert_same_weights(trainer.fit(1, silent=True, checkpoint=folder).module, ended.module)
                trainer = GinsengClassifierTrainer(dataset, QUICK)
            except ValueError as error:
                assert "checkpoint.h5" in str(error)
                refused += 1
        assert refused > 20


def test_the_model_file_of_a_resumed_run_tells_its_whole_history(dataset, tmp_path):
    trainer = GinsengClassifierTrainer(dataset, QUICK)
    trainer.fit(2, silent=True, checkpoint=tmp_path / "run")
    resumed = GinsengClassifierTrainer(dataset, QUICK)
    resumed.fit(2, silent=True, checkpoint=tmp_path / "run")
    assert json.dumps(resumed.metadata()) == json.dumps(trainer.metadata())
    assert np.isfinite(resumed.logger.train_loss).all()
