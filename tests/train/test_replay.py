"""Steps that see a share of old cells, and a teacher's answers."""

import jax
import jax.random as jr
import numpy as np
import pytest

from ginseng import AttentionClassifier, GinsengDataset, Trainer, adam_l2
from ginseng.train import Recipe, Sampling
from ginseng.train.feed import Feed
from ginseng.utils.devices import Devices
from tests.conftest import simulate
from tests.train.models import assert_same_weights

LABELS = ["B cell", "NK cell", "T cell"]


@pytest.fixture
def old(tmp_path):
    """Cells of two types only, with other genes, in another order; every count is of the new cells' genes plus 100."""
    adata = simulate(n_cells=90, n_types=2, seed=5)
    adata.X.data += 100
    adata = adata[:, ::-1].copy()
    dataset = GinsengDataset.create(tmp_path / "old.zarr", adata, "cell_type", silent=True)
    dataset.make_split(0.2)
    return dataset


@pytest.fixture
def new(dataset):
    dataset.make_split(0.25)
    return dataset


def cells_of(feed, seed=0):
    """What an epoch feeds, step by step: counts, and labels."""
    rates = np.zeros(feed.n_steps)
    for slab, _ in feed.train(np.random.default_rng(seed), rates, feed.budget()):
        for nth in range(int(slab.n_steps)):
            mask = np.asarray(slab.mask[nth])
            yield np.asarray(slab.x[nth])[mask], np.asarray(slab.y[nth])[mask]


@pytest.mark.parametrize(("replay", "n_old"), [(0.5, 10), (0.25, 5), (0.9, 18), (0.99, 19)])
def test_each_step_has_its_share_of_old_cells_and_each_new_cell_comes_once(new, old, replay, n_old):
    feed = Feed(new, Devices(1), Sampling(batch_size=20, replay=replay), labels=LABELS, old=old)
    steps = list(cells_of(feed))
    is_old = [(x.max(axis=1) > 100) for x, _ in steps]
    assert {int(mask.sum()) for mask in is_old} == {n_old}
    assert feed.n_steps == len(steps)
    assert feed.n_train == sum(len(x) for x, _ in steps)
    found = np.concatenate([x[~mask] for (x, _), mask in zip(steps, is_old, strict=True)])
    expected = np.concatenate([x for x, _ in new.stream(500, "train", shuffle=False)])
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
    assert len(found) == len(expected)


def test_old_cells_have_the_models_genes_and_labels(new, old):
    feed = Feed(new, Devices(1), Sampling(batch_size=20), labels=LABELS, old=old)
    counts = {}
    for x, y in old.stream(500, "train", shuffle=False):
        counts |= {tuple(cell[::-1]): old.label_names[label] for cell, label in zip(x, y, strict=True)}
    seen = [(tuple(cell), LABELS[label]) for x, y in cells_of(feed) for cell, label in zip(x, y, strict=True)]
    seen = [(cell, label) for cell, label in seen if max(cell) > 100]
    assert seen
    for cell, label in seen:
        assert counts[cell] == label


def test_held_out_cells_of_both_are_judged_the_old_ones_last(new, old):
    model = AttentionClassifier(30, 3, 8, key=jr.key(0))
    trainer = Trainer(model, new, sampling=Sampling(batch_size=16), labels=LABELS, old=old)
    _, labels = trainer.answers("test")
    expected = [new.labels[np.sort(new.test_idx)], old.labels[np.sort(old.test_idx)]]
    np.testing.assert_array_equal(labels, np.concatenate(expected))
    trainer.fit(1, silent=True)
    assert trainer.holdout_scores.confusion.to_numpy().sum() == len(labels)


def test_labels_that_only_old_cells_have_need_an_output(new, tmp_path):
    more = GinsengDataset.create(tmp_path / "more.zarr", simulate(n_types=4), "cell_type", silent=True)
    with pytest.raises(ValueError, match=r"more.zarr has labels that the model has no output for: γδ T cell"):
        Feed(new, Devices(1), Sampling(), old=more)


@pytest.mark.parametrize("size", ["2 GB", "20 kB"])
def test_equal_seeds_draw_equal_cells(new, old, size):
    options = {"labels": LABELS, "old": old}
    feeds = [Feed(new, Devices(1), Sampling(batch_size=20, memory=size), **options) for _ in range(2)]
    one, other = ([x for x, _ in cells_of(feed, 3)] for feed in feeds)
    for x, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, same)
    assert not all(map(np.array_equal, one, (x for x, _ in cells_of(feeds[0], 4))))


class TestTeacher:
    def test_its_answers_are_kept_where_labels_say_otherwise(self, new):
        """Cells are all given one label; a student that listens to its teacher gives it up less."""
        model = AttentionClassifier(30, 3, 8, dropout_rate=0.0, key=jr.key(0))
        taught = Trainer(model, new, Recipe(optimizer=adam_l2(1e-2)), Sampling(batch_size=32)).fit(8, silent=True)
        wrong = new.renamed(dict.fromkeys(new.label_names, "T cell"))
        kept = {}
        for distill in (0.0, 20.0):
            recipe = Recipe(optimizer=adam_l2(3e-3), distill=distill)
            options = {"labels": new.label_names, "teacher": taught}
            trainer = Trainer(taught, wrong, recipe, Sampling(batch_size=32), **options)
            trainer.fit(5, silent=True)
            logits, _ = trainer.answers("test")
            truth = new.labels[np.sort(wrong.test_idx)]
            kept[distill] = (logits.argmax(axis=1) == truth).mean()
        assert kept[0.0] < 0.6
        assert kept[20.0] > 0.9

    def test_a_run_with_both_goes_on_as_if_it_had_not_stopped(self, new, old, tmp_path):
        def trainer():
            model = AttentionClassifier(30, 3, 8, dropout_rate=0.2, key=jr.key(0))
            sampling = Sampling(batch_size=16, balance="resample", alpha=0.5)
            return Trainer(model, new, Recipe(), sampling, labels=LABELS, old=old, teacher=model)

        whole, stopped, again = trainer(), trainer(), trainer()
        whole.fit(3, silent=True)
        validate, n_calls = stopped._validate, []

        def stop_in_the_third():
            n_calls.append(1)
            if len(n_calls) == 3:
                raise KeyboardInterrupt
            return validate()

        stopped._validate = stop_in_the_third
        with pytest.raises(KeyboardInterrupt):
            stopped.fit(3, silent=True, checkpoint=tmp_path / "run")
        again.fit(3, silent=True, checkpoint=tmp_path / "run")
        assert_same_weights(again.model, whole.model)

    def test_another_teacher_is_another_run(self, new, tmp_path):
        models = [AttentionClassifier(30, 3, 8, key=jr.key(seed)) for seed in range(2)]
        Trainer(models[0], new, teacher=models[0]).fit(1, silent=True, checkpoint=tmp_path / "run")
        with pytest.raises(ValueError, match="initial weights"):
            Trainer(models[0], new, teacher=models[1]).fit(1, silent=True, checkpoint=tmp_path / "run")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(replay=1.0), r"`replay` must lie in \[0, 1\), but got 1.0"),
        (lambda: Recipe(distill=-1.0), r"`distill` must lie in \[0, inf\), but got -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nothing_of_it_is_traced_where_it_is_not_asked_for(new):
    trainer = Trainer(AttentionClassifier(30, 3, 8, key=jr.key(0)), new)
    assert jax.tree.leaves(trainer._fixed().teacher) == []
