"""Labels of the data under other names: kept so in a dataset, or seen so in a view of one."""

import jax.random as jr
import numpy as np
import pandas as pd
import pytest

import ginseng
from ginseng import GinsengClassifierTrainer, GinsengDataset, state_from_classifier_trainer
from ginseng.model.harmony import Harmony
from tests.conftest import simulate
from tests.train.models import QUICK

MAPPING = {"B cell": "lymphoid", "T cell": "lymphoid", "NK cell": None}


def names_of(dataset, cells=None):
    labels = dataset.labels[dataset.cells if cells is None else cells]
    return [dataset.label_names[label] for label in labels]


@pytest.fixture
def adata():
    return simulate(n_types=4)


def expected_of(adata):
    types = adata.obs["cell_type"].astype(str)
    return types.replace({"B cell": "lymphoid", "T cell": "lymphoid"})[types != "NK cell"].tolist()


class TestCreate:
    def test_labels_are_merged_and_left_out_and_the_others_stay(self, adata, tmp_path):
        made = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", mapping=MAPPING, silent=True)
        assert made.label_names == ["lymphoid", "γδ T cell"]
        assert names_of(made) == expected_of(adata)
        kept = (adata.obs["cell_type"] != "NK cell").to_numpy()
        x, _ = next(made.stream(1000, "all", shuffle=False))
        np.testing.assert_array_equal(x, adata.X[kept].toarray())
        assert GinsengDataset(made.path).label_names == made.label_names

    def test_cells_without_a_label_are_counted_apart_from_those_left_out(self, adata, tmp_path):
        adata.obs.loc["cell0", "cell_type"] = np.nan
        with pytest.warns(UserWarning, match="1 of 120 cells have no label"):
            made = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", mapping=MAPPING, silent=True)
        assert names_of(made) == expected_of(adata[1:])

    def test_a_misspelt_label_without_meaning_is_told(self, adata, tmp_path):
        with pytest.warns(UserWarning, match=r"label 'NK cel' is not in adata.obs.*; did you mean 'NK cell'"):
            made = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", unlabeled=["NK cel"], silent=True)
        assert len(made.label_names) == 4
        with pytest.warns(UserWarning, match=r"label 'NK cel' is not in .*c.zarr; did you mean 'NK cell'"):
            assert len(made.renamed(unlabeled=["NK cel"]).label_names) == 4

    def test_a_label_that_is_too_long_is_named(self, adata, tmp_path):
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("NK cell", "N" * 1001)
        with pytest.raises(ValueError, match=r"adata.obs\['cell_type'\]: label 'NNN.* has 1,001 characters"):
            GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)

    def test_what_harmonize_returns_is_a_mapping(self, adata, tmp_path):
        shares = np.eye(4)
        names = ["a1", "a2", "a3", "a4"], sorted(adata.obs["cell_type"].unique())
        frame = pd.DataFrame(shares, *names)
        harmony = Harmony.of(frame, frame.T, 0.25)
        made = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", mapping=harmony, silent=True)
        assert made.label_names == names[0]

    @pytest.mark.parametrize("mapping", [["B cell"], {"B cell": 3}, {"B cell": ""}])
    def test_what_is_no_mapping_is_refused(self, adata, tmp_path, mapping):
        with pytest.raises(ValueError, match="`mapping` must"):
            GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", mapping=mapping, silent=True)
        assert not (tmp_path / "c.zarr").exists()


class TestRenamed:
    def test_cells_left_out_are_in_no_part_and_the_dataset_stays(self, adata, tmp_path):
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        dataset.make_split(0.3)
        view = dataset.renamed(MAPPING)
        kept = np.flatnonzero((adata.obs["cell_type"] != "NK cell").to_numpy())
        np.testing.assert_array_equal(view.cells, kept)
        assert names_of(view) == expected_of(adata)
        for part, before in ((view.train_idx, dataset.train_idx), (view.test_idx, dataset.test_idx)):
            np.testing.assert_array_equal(part, before[np.isin(before, kept)])
        x = np.concatenate([x for x, _ in view.stream(16, "all", shuffle=False)])
        np.testing.assert_array_equal(x, adata.X[kept].toarray())
        assert f"{len(kept)} cells x 30 genes, 2 labels (lymphoid, γδ T cell)" in repr(view)
        assert (dataset.n_cells, len(dataset.label_names), len(dataset.cells)) == (120, 4, 120)

    def test_a_view_is_renamed_further(self, adata, tmp_path):
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        further = dataset.renamed({"NK cell": None}).renamed({"B cell": "lymphoid", "T cell": "lymphoid"})
        assert names_of(further) == expected_of(adata)

    def test_an_unknown_label_is_refused(self, dataset):
        with pytest.raises(ValueError, match="label 'NK cells' is not in .*did you mean 'NK cell'"):
            dataset.renamed({"NK cells": None})

    @pytest.mark.parametrize("options", [{}, {"group_level": True}, {"balance_train": "resample"}])
    def test_training_never_sees_the_cells_left_out_and_stores_no_split(self, adata, tmp_path, options):
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", group_key="donor", silent=True)
        view = dataset.renamed(MAPPING)
        settings = ginseng.GinsengClassifierTrainerSettings(**{**vars(QUICK), "holdout_fraction": 0.3, **options})
        trainer = GinsengClassifierTrainer(view, settings)
        trainer.fit(1, silent=True)
        assert sorted([*view.train_idx, *view.test_idx]) == list(view.cells)
        assert trainer.holdout_scores.table["cells"].sum() == len(view.test_idx)
        types = trainer.metadata()["card"]["types"]
        assert sum(of_type["cells"] for of_type in types.values()) == len(view.train_idx)
        assert dataset.train_idx is None
        assert GinsengDataset(dataset.path).train_idx is None

    def test_without_a_split_all_that_are_kept_are_trained_on(self, adata, tmp_path):
        dataset = GinsengDataset.create(tmp_path / "c.zarr", adata, "cell_type", silent=True)
        view = dataset.renamed(MAPPING)
        twin = GinsengDataset.create(tmp_path / "twin.zarr", adata, "cell_type", mapping=MAPPING, silent=True)
        losses = []
        for one in (view, twin):
            network = ginseng.AttentionClassifier(30, 2, 8, dropout_rate=0.0, key=jr.key(0))
            trainer = ginseng.Trainer(network, one, sampling=ginseng.Sampling(batch_size=200))
            trainer.fit(1, silent=True)
            losses += trainer.logger.train_loss
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class TestOneLabel:
    @pytest.fixture
    def single(self, adata, tmp_path):
        only = adata[adata.obs["cell_type"] == "γδ T cell"].copy()
        with pytest.warns(UserWarning, match="the same label, 'γδ T cell': the dataset serves to fine-tune"):
            return GinsengDataset.create(tmp_path / "single.zarr", only, "cell_type", silent=True)

    def test_no_classifier_is_trained_on_it_from_scratch(self, single):
        with pytest.raises(ValueError, match=r"at least two labels, but .*single.zarr has \['γδ T cell'\]"):
            GinsengClassifierTrainer(single, QUICK)

    def test_a_saved_one_learns_it(self, adata, single, tmp_path):
        known = adata[adata.obs["cell_type"] != "γδ T cell"].copy()
        dataset = GinsengDataset.create(tmp_path / "known.zarr", known, "cell_type", silent=True)
        trainer = GinsengClassifierTrainer(dataset, QUICK)
        trainer.fit(1, silent=True)
        tuned = GinsengClassifierTrainer(single, QUICK, start=state_from_classifier_trainer(trainer))
        tuned.fit(20, silent=True)
        assert tuned.label_names == ["B cell", "NK cell", "T cell", "γδ T cell"]
        assert tuned.holdout_scores.accuracy == 1.0


class TestAtTheirWord:
    """Labels and groups that say that there is none, or that are none."""

    @pytest.fixture
    def create(self, adata, tmp_path):
        def made(column, label_key="label", **options):
            adata.obs["label"] = column if label_key == "label" else "x"
            adata.obs["group"] = column
            return GinsengDataset.create(tmp_path / "c.zarr", adata, label_key, silent=True, **options)

        return made

    @staticmethod
    def typed(name, n_cells=30):
        return np.array([name] * n_cells + ["A", "B", "C"] * 30, dtype=object)

    @pytest.mark.parametrize("name", ["nan", "NA", "None", " ", "", "N/A", "null", "<NA>", np.nan, None])
    def test_what_says_none_is_missing(self, create, name):
        said = rf" \(30 say {name!r}\) and are left out; to keep" if isinstance(name, str) else " and are left out."
        with pytest.warns(UserWarning, match=rf"30 of 120 cells have no label in adata.obs\['label'\]{said}"):
            made = create(self.typed(name))
        assert made.label_names == ["A", "B", "C"]
        assert len(made.labels) == 90
        with pytest.raises(ValueError, match="30 of 120 cells have no label"):
            create(self.typed(name), missing_labels="error")

    def test_a_mapping_comes_first(self, create, recwarn):
        assert create(self.typed("NA"), mapping={"NA": "natural"}).label_names == ["A", "B", "C", "natural"]
        assert create(self.typed("NA"), mapping={"NA": "NA"}).label_names == ["A", "B", "C", "NA"]
        assert create(self.typed("NA"), mapping={"NA": None, "A": "B"}).label_names == ["B", "C"]
        assert not recwarn.list

    @pytest.mark.parametrize("name", ["Unknown", "unassigned", "unlabeled"])
    def test_what_is_not_known_is_a_type_unless_it_is_declared(self, create, name):
        way_out = rf"30 of 120 cells are called '{name}' in .*unlabeled=\['{name}'\].*mapping={{'{name}': None}}"
        with pytest.warns(UserWarning, match=way_out):
            assert create(self.typed(name)).label_names == sorted(["A", "B", "C", name])
        for unlabeled in (name.upper(), [name, "of another study"]):
            with pytest.warns(UserWarning, match=rf"30 of 120 cells have no label in .* \(30 say '{name}'\)") as told:
                assert create(self.typed(name), unlabeled=unlabeled).label_names == ["A", "B", "C"]
            assert len(told) == 1 + isinstance(unlabeled, list)  # of which one is not there

    def test_names_that_differ_by_blanks_or_case_are_told(self, create):
        with pytest.warns(UserWarning, match="'B' and 'B '; if they are the same, pass mapping={'B ': 'B'}"):
            assert create(self.typed("B ", 60)[:120]).label_names == ["A", "B", "B ", "C"]
        with pytest.warns(UserWarning, match="differ by blanks or case alone count as different labels: 'B' and 'b'"):
            create(self.typed("b"))

    def test_floats_are_the_integers_that_they_were(self, create):
        codes = np.repeat([0.0, 1.0, 2.0, np.nan], 30)
        with pytest.warns(UserWarning, match="holds floats, which count as the integers that they were: 0.0 is '0'"):
            assert create(codes).label_names == ["0", "1", "2"]
        with pytest.warns(UserWarning, match="have no label"):
            assert create(codes, mapping={0.0: "B", "1": "T"}).label_names == ["2", "B", "T"]
        with pytest.warns(UserWarning, match="look like integers that became floats .*mapping={'0.0': '0'"):
            assert create(codes.astype(str)).label_names == ["0.0", "1.0", "2.0"]

    def test_what_is_no_label_is_refused(self, create):
        with pytest.raises(ValueError, match=r"adata.obs\['label'\] holds measurements, such as 0.5"):
            create(np.arange(120) / 2 + 0.5)
        with pytest.raises(ValueError, match="120 labels in 120 cells: it looks like a name for each cell"):
            create([f"barcode{cell}" for cell in range(120)])
        with pytest.warns(UserWarning, match="40 labels in 120 cells, few of each"):
            create([f"type{cell // 3}" for cell in range(120)])

    @pytest.mark.parametrize("name", ["nan", "NA", "None", " ", np.nan])
    def test_groups_that_say_none_are_refused(self, create, name):
        with pytest.raises(
            ValueError, match=r"30 cells have no group in adata.obs\['group'\].*; fill them in or leave"
        ):
            create(self.typed(name), label_key="cell_type", group_key="group")

    def test_groups_are_read_by_the_same_rule(self, create):
        options = {"label_key": "cell_type", "group_key": "group"}
        with pytest.warns(UserWarning, match="integers that they were: 1.0 is '1'"):
            assert create(np.repeat([1.0, 2.0], 60), **options).group_names == ["1", "2"]
        with pytest.warns(UserWarning, match="30 of 120 cells are called 'unknown' in .* count as one group"):
            create(self.typed("unknown"), **options)
        with pytest.warns(UserWarning, match="different groups: 'A' and 'a'; rename"):
            create(self.typed("a"), **options)
        with pytest.warns(UserWarning, match="has 120 groups in 120 cells"):
            create([f"barcode{cell}" for cell in range(120)], **options)

    def test_further_columns_are_read_by_the_same_rule(self, create):
        column = self.typed("NA")
        with pytest.warns(UserWarning, match=r"of `further`, says nothing of some cells \(30 say 'NA'\)"):
            names, codes = create(column, label_key="cell_type", further=["group"]).column("group")
        assert names == ["A", "B", "C"]
        assert (codes[:30] == -1).all()

    def test_a_view_leaves_out_what_is_declared(self, create):
        dataset = create(None, "cell_type")
        view = dataset.renamed(unlabeled="nk CELL")
        assert view.label_names == ["B cell", "T cell", "γδ T cell"]
        assert names_of(view) == [name for name in names_of(dataset) if name != "NK cell"]
        assert dataset.renamed({"B cell": "NK cell"}, unlabeled=["NK cell"]).label_names == ["T cell", "γδ T cell"]

    def test_markers_are_of_the_same_labels(self, adata):
        adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).replace("NK cell", "NA")
        with pytest.warns(UserWarning, match="have no label"):
            ginseng.select_markers(adata, "cell_type", 10, silent=True)
        assert set(adata.uns["ginseng_markers"]["type"]) == {"B cell", "T cell", "γδ T cell"}
        ginseng.select_markers(adata, "cell_type", 10, silent=True, mapping={"NA": "NK"})
        assert set(adata.uns["ginseng_markers"]["type"]) == {"B cell", "NK", "T cell", "γδ T cell"}
