import errno
import json
import os
import shutil
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.io import mmwrite

from ginseng import (
    GinsengClassifierTrainerSettings,
    GinsengDataset,
    commands,
    load_model,
    save_model,
    select_hvgs,
    select_markers,
)
from ginseng.commands import registry
from ginseng.utils.genes import OTHER_GENES
from tests.conftest import (
    NEW_OR_TUNED,
    QUICK,
    REPOSITORY,
    SUBPROCESS_ENVIRONMENT,
    contents,
    ginseng,
    simulate,
    untrained,
)


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_without_a_device_is_one_line(platform, counts, tmp_path):
    save_model(untrained(), tmp_path / "m.h5")
    environment = {**SUBPROCESS_ENVIRONMENT, "JAX_PLATFORMS": platform}
    arguments = ["annotate", tmp_path / "m.h5", counts, "-o", tmp_path / "o.csv", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "ginseng", *arguments], capture_output=True, text=True, env=environment, cwd=REPOSITORY
    )
    if platform == "cuda" and not done.returncode:
        pytest.skip("there is a GPU")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "JAX_PLATFORMS" in line]
    assert line.startswith(f"error: JAX_PLATFORMS is '{platform}'") and "unset it" in line
    assert "Traceback" not in done.stderr


class TestCreate:
    def test_a_dataset_is_made_of_several_files_and_trained_on(self, tmp_path):
        for seed in (1, 2):
            simulate(60, seed=seed).write_h5ad(tmp_path / f"{seed}.h5ad")
        output = ginseng(
            *("create", tmp_path / "1.h5ad", tmp_path / "2.h5ad", "--label", "cell_type"),
            *("--group", "donor", "-o", tmp_path / "cells.zarr", "--genes", 0),
        )
        assert "GinsengDataset: 120 cells x 30 genes, 3 labels" in output
        output = ginseng(
            *("fit", tmp_path / "cells.zarr", "-o", tmp_path / "m.h5", "--hold-out-groups", "--holdout", 0.3),
            *("--balance", "resample", "--memory", "3 kB", *QUICK),
        )
        assert "3 cell types, 30 genes: saved" in output
        dataset = GinsengDataset(tmp_path / "cells.zarr")
        assert not set(dataset.groups[dataset.train_idx]) & set(dataset.groups[dataset.test_idx])
        assert load_model(tmp_path / "m.h5").metadata["settings"]["balance_train"] == "resample"

    def test_genes_of_several_files_are_chosen_together_and_trained_on(self, tmp_path):
        inputs = [simulate(60, seed=1), simulate(60, seed=2)[:, 5:].copy()]
        for name, adata in zip("ab", inputs, strict=True):
            adata.write_h5ad(tmp_path / f"{name}.h5ad")
        create = ["create", tmp_path / "a.h5ad", tmp_path / "b.h5ad", "--label", "cell_type", "-q", "--overwrite"]
        store = tmp_path / "cells.zarr"
        ginseng(*create, "-o", store, "--genes", 10, "--select", "variance", "--no-other-genes")
        dataset = GinsengDataset(store)
        trained_on = ad.concat(inputs, index_unique="-")[dataset.train_idx].copy()
        select_hvgs(trained_on, 10, silent=True)
        assert dataset.gene_names == list(trained_on.var_names[trained_on.var["ginseng_genes"]])
        ginseng("fit", store, "-o", tmp_path / "m.h5", "-q", *QUICK)
        assert load_model(tmp_path / "m.h5").n_genes == 10
        for options, n_genes in (([], 25), (["--no-other-genes"], 25), (["--genes", 0], 25), (["--genes", 10], 11)):
            ginseng(*create, "-o", store, *options)
            assert GinsengDataset(store).n_genes == n_genes
        both = ginseng(*create, "-o", store, "--genes", 10, "--gene-column", "mine", fails=True)
        assert "error: Genes are chosen by --genes or by --gene-column, not by both" in both

    def test_by_default_1000_markers_are_kept_and_the_split_is_made_first(self, tmp_path):
        adata = simulate(60, n_genes=1100)
        adata.write_h5ad(tmp_path / "a.h5ad")
        output = ginseng("create", tmp_path / "a.h5ad", "--label", "cell_type", "-o", tmp_path / "x.zarr")
        assert "60 cells x 1,001 genes" in output
        dataset = GinsengDataset(tmp_path / "x.zarr")
        trained_on = adata[dataset.train_idx].copy()
        select_markers(trained_on, "cell_type", 1000, silent=True)
        assert dataset.gene_names == [*adata.var_names[trained_on.var["ginseng_genes"]], OTHER_GENES]
        fit = ("fit", tmp_path / "a.h5ad", "--label", "cell_type", "-o", tmp_path / "m.h5", "--epochs", 0, "-q")
        ginseng(*fit, "--dataset", tmp_path / "y.zarr")
        again = GinsengDataset(tmp_path / "y.zarr")
        assert again.gene_names == dataset.gene_names
        np.testing.assert_array_equal(again.test_idx, dataset.test_idx)

    def test_labels_take_the_names_of_a_table(self, counts, tmp_path):
        table = tmp_path / "names.csv"
        table.write_text("T cell,lymphocyte\nNK cell,\n")
        create = ["create", counts, "--label", "cell_type", "-o", tmp_path / "cells.zarr", "--overwrite", "-q"]
        ginseng(*create, "--mapping", table)
        assert GinsengDataset(tmp_path / "cells.zarr").label_names == ["B cell", "lymphocyte"]
        table.write_text("T cell,lymphocyte\nT cell,other\n")
        assert "has 'T cell' twice" in ginseng(*create, "--mapping", table, fails=True)
        table.write_text("name,new name\nT cell,lymphocyte\n")
        assert "label 'name' is not in" in ginseng(*create, "--mapping", table, fails=True)

    def test_one_label_serves_to_tune_only(self, adata, model, tmp_path):
        adata[adata.obs["cell_type"] == "T cell"].copy().write_h5ad(tmp_path / "t.h5ad")
        fit = ["fit", tmp_path / "t.h5ad", "--label", "cell_type", "-o", tmp_path / "m.h5", "--genes", 0, "--epochs", 1]
        assert "at least two labels, but" in ginseng(*fit, fails=True)
        tune = ["finetune", model, tmp_path / "t.h5ad", "--label", "cell_type", "-o", tmp_path / "m.h5", "--epochs", 1]
        assert "3 cell types" in ginseng(*tune)

    def test_cells_are_chosen_by_a_query(self, counts, tmp_path):
        create = ["create", counts, counts, "--label", "cell_type", "-o", tmp_path / "cells.zarr", "-q", "--genes", 0]
        ginseng(*create, "--cells", "donor == 'd1'", "--group", "donor")
        assert GinsengDataset(tmp_path / "cells.zarr").group_names == ["d1"]
        assert len(GinsengDataset(tmp_path / "cells.zarr").labels) == 2 * (simulate().obs["donor"] == "d1").sum()
        assert "holds for none" in ginseng(*create, "--overwrite", "--cells", "donor == 'x'", fails=3)

    def test_whole_groups_may_be_held_out_and_others_summed(self, counts, tmp_path):
        create = ["create", counts, "--label", "cell_type", "-o", tmp_path / "cells.zarr", "-q", "--overwrite"]
        ginseng(*create, "--group", "donor", "--genes", 9, "--holdout", 0.3, "--hold-out-groups")
        dataset = GinsengDataset(tmp_path / "cells.zarr")
        assert dataset.gene_names[-1] == OTHER_GENES
        assert not set(dataset.groups[dataset.train_idx]) & set(dataset.groups[dataset.test_idx])
        fit = [
            "fit",
            tmp_path / "cells.zarr",
            "-o",
            tmp_path / "m.h5",
            "-q",
            "--hold-out-groups",
            "--overwrite",
            *QUICK,
        ]
        ginseng(*fit)
        ginseng("annotate", tmp_path / "m.h5", counts, "-o", tmp_path / "t.csv", "-q")
        ginseng(*create, "--group", "donor", "--genes", 9)
        assert "and no whole groups: make the dataset anew" in ginseng(*fit, fails=True)
        assert "--select must be one of markers, variance" in ginseng(*create, "--select", "best", fails=2)

    @pytest.mark.parametrize("command", ["create", "fit"])
    @pytest.mark.parametrize("options", [[], ["--genes", 1000]])
    def test_too_few_genes_are_told_of_a_number_that_was_given(self, counts, tmp_path, recwarn, command, options):
        more = ["-o", tmp_path / "x.zarr"] if command == "create" else ["-o", tmp_path / "m.h5", *QUICK]
        ginseng(command, counts, "--label", "cell_type", *more, *options)
        told = [str(warning.message) for warning in recwarn if "were to be chosen" in str(warning.message)]
        assert len(told) == (1 if options else 0)

    def test_a_dataset_is_replaced_only_on_request(self, counts, tmp_path):
        command = ["create", counts, "--label", "cell_type", "-o", tmp_path / "cells.zarr", "-q"]
        assert ginseng(*command) == ""
        assert "cells.zarr exists; --overwrite replaces it" in ginseng(*command, fails=2)
        ginseng(*command, "--overwrite")

    def test_what_a_dataset_does_not_take(self, counts, tmp_path):
        ginseng("create", counts, "--label", "cell_type", "-o", tmp_path / "cells.zarr", "-q", "--genes", 0)
        fit = ["fit", tmp_path / "cells.zarr", "-o", tmp_path / "m.h5", "--overwrite"]
        output = ginseng(*fit, "--label", "cell_type", "--genes", 10, fails=2)
        assert "--label and --genes cannot be chosen for a dataset" in output
        GinsengDataset(tmp_path / "cells.zarr").make_split(0.25)
        assert "has been split before: 30 cells are held out" in ginseng(*fit, *QUICK)
        assert "like 256_000_000, '256 MB'" in ginseng(*fit, "--memory", "much", fails=2)
        assert "--label is needed" in ginseng("fit", counts, "-o", tmp_path / "n.h5", fails=2)
        assert "balanced by one of none" in ginseng(*fit, "--balance", "up", fails=2)

    def test_a_share_to_hold_out_that_would_be_ignored_is_refused(self, counts, tmp_path):
        store = tmp_path / "cells.zarr"
        ginseng("create", counts, "--label", "cell_type", "--group", "donor", "-o", store, "-q", "--genes", 0)
        fit = ["fit", store, "-o", tmp_path / "m.h5", "--epochs", 0, "-q", "--overwrite"]
        for _ in range(2):  # as after a kill, when the same call comes again
            ginseng(*fit, "--holdout", 0.25)
        refused = ginseng(*fit, "--holdout", 0.5, fails=2)
        n_held_out = len(GinsengDataset(store).test_idx)
        assert f"with {n_held_out} of 120 cells held out, which --holdout 0.5 does not change: leave it out" in refused
        assert f"GinsengDataset('{store}').make_split(0.5)" in refused
        assert "has been split before" in ginseng(*fit, "--holdout", 0, fails=True)
        ginseng(*fit)
        GinsengDataset(store).make_split(0.5, stratify_group=True)
        ginseng(*fit, "--holdout", 0.5, "--hold-out-groups")
        assert "has been split before" in ginseng(*fit, "--holdout", 0.01, fails=True)

    @pytest.mark.parametrize("options", [{}, {"stratify_label": True}, {"stratify_label": True, "keep_rare": True}])
    def test_each_share_that_another_split_was_made_with_is_refused(self, counts, tmp_path, options):
        store = tmp_path / "cells.zarr"
        ginseng("create", counts, "--label", "cell_type", "-o", store, "-q", "--genes", 0)
        fit = ["fit", store, "-o", tmp_path / "m.h5", "--epochs", 0, "-q", "--overwrite"]
        GinsengDataset(store).make_split(0.1, **options)
        ginseng(*fit, "--holdout", 0.1)
        for other in (0, 0.05, 0.2):
            assert "has been split before" in ginseng(*fit, "--holdout", other, fails=True)


class TestFit:
    def test_a_model_is_saved(self, counts, tmp_path):
        output = ginseng("fit", counts, "--label", "cell_type", "-o", tmp_path / "m.h5", "--genes", 10, *QUICK)
        assert "3 cell types, 11 genes: saved" in output
        assert "epoch 6: train loss" in output
        assert load_model(tmp_path / "m.h5").metadata["settings"]["hidden_dim"] == 8
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "m.h5"]

    def test_labels_are_read_by_one_rule(self, adata, tmp_path):
        names = np.array(["0", "1", "NA", "Unknown"])
        adata.obs["type"] = names[np.arange(120) % 4]
        adata.write_h5ad(tmp_path / "x.h5ad")
        (tmp_path / "names.csv").write_text("NA,natural\n")
        options = ["--label", "type", "--mapping", tmp_path / "names.csv", "--unlabeled", "unknown", "-q"]
        ginseng("fit", tmp_path / "x.h5ad", "-o", tmp_path / "m.h5", "--epochs", 1, *options)
        assert list(load_model(tmp_path / "m.h5").output_labels) == ["0", "1", "natural"]
        ginseng("finetune", tmp_path / "m.h5", tmp_path / "x.h5ad", "-o", tmp_path / "t.h5", "--epochs", 1, *options)
        assert list(load_model(tmp_path / "t.h5").output_labels) == ["0", "1", "natural"]
        ginseng("create", tmp_path / "x.h5ad", "-o", tmp_path / "x.zarr", "--genes", 0, "--label", "type", "-q")
        ginseng("fit", tmp_path / "x.zarr", "-o", tmp_path / "d.h5", "--epochs", 1, "--unlabeled", "unknown", "-q")
        assert list(load_model(tmp_path / "d.h5").output_labels) == ["0", "1"]
        adata.obs["truth"] = np.where(np.arange(120) % 4 < 2, np.arange(120) % 4, np.nan)
        adata.write_h5ad(tmp_path / "x.h5ad")
        printed = ginseng(
            "annotate", tmp_path / "m.h5", tmp_path / "x.h5ad", "-o", tmp_path / "x.csv", "--truth", "truth"
        )
        assert "on 60 cells" in printed
        named = {line.split(maxsplit=1)[0] for line in printed.splitlines() if line.strip()}
        assert {"0", "1"} <= named
        assert not {"0.0", "1.0"} & named

    def test_quiet(self, counts, tmp_path):
        assert ginseng("fit", counts, "--label", "cell_type", "-o", tmp_path / "m.h5", *QUICK, "-q") == ""

    def test_groups_cells_and_dataset(self, counts, tmp_path):
        ginseng(
            *("fit", counts, "--label", "cell_type", "-o", tmp_path / "m", "--cells", "donor != 'd4'"),
            *("--group", "donor", "--hold-out-groups", "--holdout", 0.3, "--dataset", tmp_path / "kept.zarr", *QUICK),
        )
        kept = GinsengDataset(tmp_path / "kept.zarr")
        assert kept.group_names == ["d1", "d2", "d3"]
        assert len(set(kept.groups[kept.test_idx])) == 1
        assert (tmp_path / "m.h5").exists()

    def test_a_run_is_logged_and_goes_on_from_its_checkpoint(self, counts, tmp_path):
        options = ("--label", "cell_type", "--checkpoint", tmp_path / "run", "--log", tmp_path / "run.csv", *QUICK)
        for name in ("first", "second"):
            ginseng("fit", counts, "-o", tmp_path / f"{name}.h5", "--precision", "bfloat16", *options)
        first, second = (load_model(tmp_path / f"{name}.h5") for name in ("first", "second"))
        assert len((tmp_path / "run.csv").read_text().splitlines()) == 1 + len(first.metadata["history"]["epoch"])
        assert pd.read_csv(tmp_path / "run.csv")["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
        assert first.metadata["settings"]["precision"] == "bfloat16"
        for name, layer in first.params.items():
            np.testing.assert_array_equal(layer["W"], second.params[name]["W"])
        result = ginseng("fit", counts, "-o", tmp_path / "third.h5", *options, fails=1)
        assert "precision was bfloat16, now float32" in " ".join(result.split())

    def test_gene_column_and_layer(self, adata, tmp_path):
        adata.var["mine"] = np.arange(30) < 20
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.zeros(adata.shape, dtype=np.float32)
        adata.write_h5ad(tmp_path / "x.h5ad")
        options = ["--layer", "counts", "--gene-column", "mine"]
        ginseng("fit", tmp_path / "x.h5ad", "--label", "cell_type", "-o", tmp_path / "m.h5", *options, *QUICK)
        state = load_model(tmp_path / "m.h5")
        assert list(state.genes) == [f"GENE{i}" for i in range(20)]
        losses = state.metadata["history"]["train_loss"]
        assert losses[-1] < 0.5 * losses[0]

    def test_a_column_of_gene_names(self, adata, model, tmp_path):
        symbols = list(adata.var["symbol"])
        adata.var_names = [str(i) for i in range(30)]
        adata.write_h5ad(tmp_path / "n.h5ad")
        named = [tmp_path / "n.h5ad", "--label", "cell_type", "--gene-key", "symbol", "-o"]
        ginseng("create", *named, tmp_path / "n.zarr", "-q")
        assert GinsengDataset(tmp_path / "n.zarr").gene_names == symbols
        ginseng("fit", *named, tmp_path / "n.h5", *QUICK)
        assert load_model(tmp_path / "n.h5").genes.tolist() == symbols
        refused = ginseng("fit", tmp_path / "n.zarr", "--gene-key", "symbol", "-o", tmp_path / "o.h5", fails=True)
        assert "--gene-key cannot be chosen for a dataset" in refused
        adata.var["name"] = [f"GENE{i}" for i in range(30)]
        adata.write_h5ad(tmp_path / "n.h5ad")
        tuned = ["finetune", model, tmp_path / "n.h5ad", "--label", "cell_type", "-o", tmp_path / "t.h5", "--epochs", 1]
        tuned += ["--overwrite"]
        ginseng(*tuned, "--gene-key", "name")
        assert load_model(tmp_path / "t.h5").genes.tolist() == list(adata.var["name"])
        assert "the model knows GENE0" in ginseng(*tuned, "--gene-key", "symbol", fails=True)

    def test_cells_without_a_label(self, adata, tmp_path):
        adata.obs.loc["cell7", "cell_type"] = np.nan
        adata.write_h5ad(tmp_path / "x.h5ad")
        fit = ["fit", tmp_path / "x.h5ad", "--label", "cell_type", "-o", tmp_path / "m.h5", "--overwrite", *QUICK]
        with pytest.warns(UserWarning, match="1 of 120 cells have no label"):
            ginseng(*fit)
        assert "error: 1 of 120 cells have no label" in ginseng(*fit, "--require-labels", fails=3)

    def test_raw_counts(self, adata, tmp_path):
        adata.raw = adata.copy()
        adata = adata[:, :5].copy()
        adata.X = np.zeros(adata.shape, dtype=np.float32)
        adata.write_h5ad(tmp_path / "x.h5ad")
        options = ["--layer", "raw", "--genes", 20, *QUICK]
        ginseng("fit", tmp_path / "x.h5ad", "--label", "cell_type", "-o", tmp_path / "m.h5", *options)
        assert load_model(tmp_path / "m.h5").n_genes == 21

    def test_an_output_that_cannot_be_written_is_refused_first(self, counts, tmp_path):
        (tmp_path / "folder.h5").mkdir()
        for output, message in (("folder.h5", "is a folder; name a file"), ("cells.h5ad/m.h5", "cannot be written")):
            printed = ginseng("fit", counts, "--label", "cell_type", "-o", tmp_path / output, *QUICK, fails=True)
            assert message in printed
            assert "epoch" not in printed

    def test_fine_tuning_is_a_command_of_its_own(self, counts, model, tmp_path):
        with pytest.raises(AssertionError, match="No such option"):
            ginseng("fit", counts, "--label", "cell_type", "-o", tmp_path / "m.h5", "--from", model)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--label", "celltype"], "error: label column 'celltype' is not in adata.obs; did you mean 'cell_type'"),
            (["--label", "cell_type", "--hold-out-groups"], "error: --hold-out-groups needs --group"),
            (["--label", "cell_type", "--cells", "doner == 'd1'"], "--cells.*doner.*Columns of obs: cell_type, donor"),
            (["--label", "cell_type", "--cells", "donor == 'x'"], "holds for none of the 120 cells"),
            (["--label", "cell_type", "--holdout", "1"], r"--holdout must lie in \[0, 1\), but got 1.0"),
            (["--label", "cell_type", "--group", "batch"], "group column 'batch' is not in adata.obs"),
            (["--label", "cell_type", "--cells", "cell_type"], "not true or false for each cell; to compare, write"),
            (["--label", "cell_type", "--cells", "donor = 'd1'"], "not true or false|cannot be evaluated"),
        ],
    )
    def test_errors_are_one_line_and_nothing_is_lost(self, counts, model, tmp_path, args, message):
        old = model.read_bytes()
        (tmp_path / "m.h5").write_bytes(old)
        output = ginseng("fit", counts, "-o", tmp_path / "m.h5", "--overwrite", *args, *QUICK, fails=True)
        assert pd.Series([output.replace("\n", " ")]).str.contains(message)[0], output
        assert "Traceback" not in output
        assert (tmp_path / "m.h5").read_bytes() == old


class TestOutputs:
    """No output replaces an input or another output, or what is there without --overwrite."""

    @pytest.fixture(scope="class")
    def folder(self, model, tmp_path_factory):
        folder = tmp_path_factory.mktemp("outputs")
        simulate().write_h5ad(folder / "cells.h5ad")
        shutil.copy(model, folder / "m.h5")
        ginseng("annotate", model, folder / "cells.h5ad", "-o", folder / "a.h5ad", "-q")
        ginseng("create", folder / "cells.h5ad", "--label", "cell_type", "-o", folder / "d.zarr", "-q", "--genes", 0)
        (folder / "names.csv").write_text("GENE1,GENE1\n")
        (folder / "link.h5").symlink_to("m.h5")
        (folder / "hard.csv").hardlink_to(folder / "names.csv")
        (folder / "sub").mkdir()
        return folder

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("annotate m.h5 cells.h5ad -o cells.h5ad", "--output cells.h5ad is DATA cells.h5ad itself"),
            ("annotate m.h5 cells.h5ad -o sub/../cells.h5ad", "--output sub/../cells.h5ad is DATA cells.h5ad itself"),
            ("annotate m.h5 cells.h5ad -o o.csv --report o.csv", "o.csv must end in .html"),
            ("annotate m.h5 ~/cells.h5ad -o ~/cells.h5ad", "/cells.h5ad is DATA"),
            ("fit ~/m.h5 -o m.h5 --label x", "--output m.h5 is DATA"),
            ("annotate m.h5 cells.h5ad -o names.csv --gene-map names.csv", "is --gene-map names.csv itself"),
            ("annotate m.h5 cells.h5ad -o hard.csv --gene-map names.csv", "hard.csv is --gene-map names.csv itself"),
            ("annotate m.h5 cells.h5ad -o names.csv --hierarchy names.csv", "is --hierarchy names.csv itself"),
            ("annotate m.h5 d.zarr -o d.zarr/a.zarr", "--output d.zarr/a.zarr lies within DATA d.zarr"),
            ("explain m.h5 cells.h5ad -o m.h5", "--output must be a .csv or .tsv file, but got m.h5"),
            (
                "harmonize m.h5 cells.h5ad m.h5 cells.h5ad --label-a x -o o.csv --mapping o.csv",
                "is --output o.csv itself",
            ),
            ("report a.h5ad -o m.h5 --model m.h5", "m.h5 must end in .html"),
            ("fit m.h5 -o m.h5 --label x", "--output m.h5 is DATA m.h5 itself"),
            ("fit m.h5 -o link.h5 --label x", "--output link.h5 is DATA m.h5 itself"),
            ("fit m.h5 -o m --label x", "--output m.h5 is DATA m.h5 itself"),
            ("fit d.zarr -o d.zarr/m.h5", "--output d.zarr/m.h5 lies within DATA d.zarr; name another output"),
            ("fit cells.h5ad --label x -o e.zarr/m.h5 --dataset e.zarr", "e.zarr holds --output e.zarr/m.h5"),
            ("fit d.zarr -o run/checkpoint.h5 --checkpoint run", "--checkpoint run/checkpoint.h5 is --output"),
            ("finetune m.h5 d.zarr -o t.h5 --log names.csv", "names.csv is no log of a training run"),
            ("finetune m.h5 d.zarr -o m.h5", "--output m.h5 is MODEL m.h5 itself"),
            ("create cells.h5ad --label cell_type -o d.zarr --mapping d.zarr/names.csv", "holds --mapping"),
            ("merge a.h5ad -o a.h5ad", "--output a.h5ad is SHARDS a.h5ad itself"),
        ],
    )
    def test_an_input_stays_as_it_is(self, folder, monkeypatch, command, message):
        monkeypatch.chdir(folder)
        if "~" in command:
            monkeypatch.setenv("HOME", str(folder))
        before = contents(folder)
        assert message in ginseng(*command.split(), "--overwrite", fails=2)
        assert contents(folder) == before

    @pytest.mark.parametrize(
        "command",
        [
            "annotate m.h5 cells.h5ad -o a.h5ad",
            "annotate m.h5 cells.h5ad -o new.csv --report page.html",
            "annotate m.h5 cells.h5ad -o out --format csv",
            "explain m.h5 cells.h5ad -o names.csv",
            "harmonize m.h5 cells.h5ad m.h5 cells.h5ad --label-a cell_type -o names.csv",
            "report a.h5ad -o page.html",
            "fit cells.h5ad -o m.h5 --label cell_type",
            "fit cells.h5ad -o m --label cell_type",
            "fit cells.h5ad -o new.h5 --label cell_type --dataset d.zarr",
            "finetune link.h5 cells.h5ad -o other.h5 --label cell_type",
            "create cells.h5ad --label cell_type -o d.zarr",
            "demo --data cells.h5ad --label cell_type --out results",
        ],
    )
    def test_what_is_there_is_replaced_on_request_only(self, folder, monkeypatch, command):
        monkeypatch.chdir(folder)
        for name in ("page.html", "other.h5"):
            (folder / name).write_text("mine")
        for within in ("out", "results"):
            (folder / within).mkdir(exist_ok=True)
        (folder / "out" / "cells.csv").write_text("mine")
        (folder / "results" / "umap.png").write_text("mine")
        if "-o out" in command:
            shutil.copy("cells.h5ad", "more.h5ad")
            command = command.replace("cells.h5ad", "cells.h5ad more.h5ad")
        before = contents(folder)
        refused = ginseng(*command.split(), fails=2)
        assert "exists; --overwrite replaces it." in refused and refused.count("\n") == 1
        assert contents(folder) == before

    def test_a_folder_of_10x_files_takes_one_more(self, model, adata, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        mmwrite(tmp_path / "matrix.mtx", adata.X.T.astype(int))
        genes = pd.DataFrame({"id": adata.var_names, "name": adata.var_names})
        genes.to_csv("genes.tsv", sep="\t", header=False, index=False)
        pd.Series(adata.obs_names).to_csv("barcodes.tsv", header=False, index=False)
        for options in ([], ["--overwrite"]):
            ginseng("annotate", model, ".", "-o", "cells.csv", "-q", *options)
        assert len(pd.read_csv("cells.csv")) == 120
        refused = ginseng("explain", model, ".", "-o", "genes.tsv", "--overwrite", fails=2)
        assert "--output genes.tsv lies within DATA ." in refused

    def test_a_call_may_replace_what_it_began(self, counts, tmp_path, monkeypatch):
        """As after a kill between saving the dataset, or the model, and the end."""

        def killed(*_):
            raise KeyboardInterrupt

        fit = ["fit", counts, "--label", "cell_type", "-o", tmp_path / "m.h5", "--dataset", tmp_path / "d.zarr", "-q"]
        fit += ["--calibrate", "none", *QUICK]
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr("ginseng.commands.training.forget", killed)
            ginseng(*fit, "--checkpoint", tmp_path / "run")
        assert "m.h5 exists" in ginseng(*fit, "--checkpoint", tmp_path / "another", fails=2)
        ginseng(*fit, "--checkpoint", tmp_path / "run")
        assert "m.h5 exists" in ginseng(*fit, "--checkpoint", tmp_path / "run", fails=2)

    def test_a_refused_call_has_begun_nothing(self, counts, tmp_path):
        fit = ["fit", counts, "-o", tmp_path / "m.h5", "--checkpoint", tmp_path / "run", "--label"]
        ginseng(*fit, "no such column", fails=3)
        (tmp_path / "m.h5").write_text("mine")
        assert "m.h5 exists" in ginseng(*fit, "cell_type", fails=2)


class TestExitCodes:
    @pytest.mark.parametrize(
        ("command", "code", "message"),
        [
            ("fit cells.h5ad -o n.h5", 2, "--label is needed"),
            ("fit cells.h5ad --label cell_type -o n.h5 --lr -1", 2, "--lr must lie in"),
            ("fit cells.h5ad --label cell_type -o n.h5 --dropout 1", 2, "--dropout must lie in [0, 1), but got 1.0"),
            ("fit cells.h5ad --label cell_type -o n.h5 --balance up", 2, "balanced by one of"),
            ("fit logs.h5ad --label cell_type -o n.h5", 3, "pass --fix, by which this is undone"),
            ("fit cells.h5ad --label type -o n.h5", 3, "label column 'type' is not in adata.obs"),
            ("fit none.h5ad --label type -o n.h5", 1, "There is no"),
            ("fit m.h5 --label type -o n.h5", 3, "m.h5"),
            (
                "create cells.h5ad --label cell_type -o n.zarr --holdout 2",
                2,
                "--holdout must lie in [0, 1), but got 2.0",
            ),
            ("create cells.h5ad --label cell_type -o n.zarr --select best", 2, "--select must be one of"),
            ("create logs.h5ad --label cell_type -o n.zarr", 3, "--fix"),
            ("annotate cells.h5ad m.h5 -o n.csv", 3, "were the two swapped"),
            ("annotate m.h5 cells.h5ad -o n.csv --min-overlap 2", 2, "--min-overlap must lie in [0, 1], but got 2.0"),
            ("annotate m.h5 cells.h5ad -o n.csv --novel-error 2", 2, "--novel-error must lie in"),
            ("annotate m.h5 cells.h5ad -o n.csv --gene-key symbol", 3, "no --gene-key would match 30"),
            ("annotate m.h5 cells.h5ad -o n.csv --only Neuron", 2, "only|Neuron"),
            ("annotate m.h5 layers.h5ad -o n.csv", 3, "pass --layer counts, which has raw counts; --fix does so"),
            ("explain m.h5 cells.h5ad -o n.csv --groupby no", 3, "'no' is not in"),
            ("explain m.h5 logs.h5ad -o n.csv", 3, "logs.h5ad|log1p"),
            (
                "harmonize m.h5 cells.h5ad m.h5 cells.h5ad --label-a cell_type -o n.csv --threshold 2",
                2,
                "--threshold must",
            ),
            ("inspect broken.h5ad", 3, "broken.h5ad"),
            ("merge cells.h5ad -o n.h5ad", 3, "is no shard"),
            ("doctor cells.h5ad --ignore-case", 2, "--ignore-case cannot be chosen without a model"),
            ("report table.csv -o n.html", 3, "annotate with -o annotated.h5ad"),
            ("report cells.h5ad -o n.html", 3, "is not in the annotated cells"),
            ("doctor m.h5 cells.h5ad --min-overlap 2", 2, "--min-overlap must lie in"),
            ("doctor broken.h5ad", 3, "broken.h5ad"),
            ("finetune m.h5 cells.h5ad --label cell_type -o n.h5 --lr -1", 2, "--lr must lie in"),
            ("finetune m.h5 logs.h5ad --label cell_type -o n.h5", 3, "--fix"),
        ],
    )
    def test_they_tell_wrong_use_from_refused_data(self, model, adata, tmp_path, monkeypatch, command, code, message):
        monkeypatch.chdir(tmp_path)
        shutil.copy(model, "m.h5")
        adata.write_h5ad("cells.h5ad")
        logs = adata.copy()
        logs.X = np.log1p(logs.X)
        logs.write_h5ad("logs.h5ad")
        logs.layers["counts"] = adata.X
        logs.write_h5ad("layers.h5ad")
        (tmp_path / "table.csv").write_text("cell,ginseng_cell_type\nc1,B cell\n")
        (tmp_path / "broken.h5ad").write_bytes((tmp_path / "cells.h5ad").read_bytes()[:3000])
        before = contents(tmp_path)
        said = ginseng(*command.split(), fails=code)
        assert any(part in said for part in message.split("|")), said
        assert said.startswith("error: ") and said.count("\n") == 1
        assert "` must" not in said
        assert contents(tmp_path) == before

    def test_a_file_that_may_not_be_read_is_refused(self, model, counts, tmp_path, monkeypatch):
        def locked(*_, **__):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", str(counts))

        monkeypatch.setattr("ginseng.commands.annotating.opened_counts", locked)
        assert str(counts) in ginseng("annotate", model, counts, "-o", tmp_path / "a.csv", fails=3)

    @pytest.mark.parametrize("info", commands.app.registered_commands, ids=lambda info: info.callback.__name__)
    def test_each_command_documents_them(self, info):
        told = " ".join(ginseng(info.callback.__name__, "--help").split())
        assert "Exit codes: 0 done, 1 failed, 2 wrong use, 3 input refused" in told
        assert ("4 a limit of --strict exceeded" in told) == ("--strict <" in told)


@pytest.mark.parametrize(
    ("command", "told", "typed"),
    [
        (commands.annotate, "`min_overlap` must lie in [0, 1]", "--min-overlap must lie in [0, 1]"),
        (commands.annotate, "pass fix=True, or", "pass --fix, or"),
        (commands.annotate, 'layer="counts" has them', "--layer counts has them"),
        (commands.annotate, "pass layer='my counts'.", "pass --layer 'my counts'."),
        (commands.annotate, "gene_key=None would match 3", "no --gene-key would match 3"),
        (commands.annotate, "pass gene_map=, a table", "pass --gene-map, a table"),
        (commands.annotate, "pass calibrate=False", "pass --no-calibrate"),
        (commands.annotate, "`store_probs` and kind='csv'", "--probabilities and --format csv"),
        (commands.annotate, "create(fix=True) of `rates`, lr=0.1", "create(fix=True) of `rates`, lr=0.1"),
        (commands.fit, "`label_key`, `holdout_fraction` and `dropout_rate`", "--label, --holdout and --dropout"),
        (commands.finetune, "mapping={'Ts': 'T'}.", "--mapping with a table that has the line 'Ts,T'."),
        (commands.demo, "`n_genes`", "--genes"),
        (commands.fit, "pass unlabeled=['Unknown'] to count", "pass --unlabeled Unknown to count"),
        (commands.fit, "unlabeled=['of [it]', \"d'un\"]", "--unlabeled 'of [it]' --unlabeled 'd'\"'\"'un'"),
        (
            commands.annotate,
            "pass fix=True, by which this is undone, or normalize=False for a network that takes such values",
            "pass --fix, by which this is undone",
        ),
        (commands.fit, "was scaled, or pass normalize=False for a network that takes such values", "was scaled"),
        (commands.fit, "make it from raw counts, or train with normalize=False.", "make it from raw counts."),
        (commands.annotate, "are swapped, pass adata.T", "are swapped, transpose the file (in Python: adata.T)"),
    ],
)
def test_messages_name_options(monkeypatch, command, told, typed):
    monkeypatch.setattr(registry, "_options", dict(registry._options_of(command)))
    assert registry.as_typed(told) == typed


class TestStreams:
    def run(self, line, **how):
        line = f"{sys.executable} -m ginseng {line}"
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=SUBPROCESS_ENVIRONMENT, **how)

    def test_closed_ones_are_no_matter(self, model, counts, tmp_path):
        done = self.run(f"annotate {model} {counts} -o {tmp_path / 'a.csv'} >&- 2>&-")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(pd.read_csv(tmp_path / "a.csv")) == 120
        assert self.run(f"annotate {model} {counts} -o {tmp_path / 'a.csv'} 2>&-").returncode == 2

    def test_a_reader_that_has_gone_ends_a_command_quietly(self, model):
        done = self.run(f"inspect {model} | true; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stdout, done.stderr) == (141, "", "")

    def test_what_does_not_print_is_shown_escaped(self, counts, tmp_path):
        said = ginseng("fit", counts, "--label", "\x1b[31mred\r", "-o", tmp_path / "m.h5", fails=3)
        assert r"label column '\x1b[31mred\r' is not in adata.obs" in said and said.isascii()

    def test_names_of_files_need_not_be_utf_8(self, model, adata, tmp_path):
        cells, annotated = (tmp_path / os.fsdecode(name) for name in (b"a\xff.h5ad", b"b\xff.h5ad"))
        adata.write_h5ad(tmp_path / "cells.h5ad")
        (tmp_path / "cells.h5ad").rename(cells)
        assert r"b\udcff.h5ad" in ginseng("annotate", model, cells, "-o", annotated)
        ginseng("report", annotated, "-o", tmp_path / "r.html", "--mqc", tmp_path / "r_mqc.json")
        assert r"<h1>b\udcff.h5ad</h1>" in (tmp_path / "r.html").read_text()


class TestInspect:
    def test_model(self, model):
        output = ginseng("inspect", model)
        for part in (
            "30 genes, 3 cell types",
            "B cell, NK cell, T cell",
            "10000 counts per cell",
            "6 epochs",
            "lr=0.005",
        ):
            assert part in output

    def test_model_without_a_holdout(self, counts, tmp_path):
        ginseng("fit", counts, "--label", "cell_type", "-o", tmp_path / "m.h5", "--holdout", 0, *QUICK)
        output = ginseng("inspect", tmp_path / "m.h5")
        assert "6 epochs, train loss" in output
        assert "nan" not in output

    def test_dataset(self, dataset):
        assert "split: none yet" in ginseng("inspect", dataset.path)
        dataset.make_split(0.25)
        output = ginseng("inspect", dataset.path)
        assert "90 cells to train on, 30 held out" in output
        assert f"B cell: {(dataset.labels == 0).sum()} cells" in output

    def test_counts(self, counts):
        output = ginseng("inspect", counts)
        for part in ("120 cells x 30 genes", "cell_type: 3 values", "donor: 4 values", "symbol"):
            assert part in output

    @pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
    @pytest.mark.parametrize("storage", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
    def test_where_the_raw_counts_are(self, adata, tmp_path, storage, suffix):
        x = adata.X.toarray()
        adata.raw = ad.AnnData(storage(x), var=adata.var)
        adata = adata[:, :7].copy()
        adata.layers["scaled"] = storage(x[:, :7] - 0.25)
        adata.layers["counts"] = storage(x[:, :7])
        adata.X = storage(np.log1p(x[:, :7]))
        path = tmp_path / f"x.{suffix}"
        adata.write_zarr(path) if suffix == "zarr" else adata.write_h5ad(path)
        output = ginseng("inspect", path)
        assert "raw: 30 genes" in output
        assert "whole numbers, as raw counts are: layer counts, raw\n" in output
        del adata.raw, adata.layers["counts"], adata.X
        adata.write_h5ad(tmp_path / "y.h5ad")
        output = ginseng("inspect", tmp_path / "y.h5ad")
        assert "raw: none" in output
        assert "whole numbers, as raw counts are: none\n" in output

    def test_nothing_there(self, tmp_path):
        assert "error: There is no" in ginseng("inspect", tmp_path / "x", fails=True)


@pytest.mark.parametrize("command", [[], ["create"], ["fit"], ["annotate"], ["merge"], ["inspect"], ["demo"]])
def test_help(command):
    output = ginseng(*command, "--help")
    assert "Usage:" in output
    assert "Annotate" in output or "Example" in output or "Tell" in output or "Train" in output


def test_help_shows_every_command_and_the_defaults_of_the_settings():
    output = ginseng("--help")
    for info in commands.app.registered_commands:
        assert f"  {info.callback.__name__} " in output
    assert f"default: {GinsengClassifierTrainerSettings().batch_size}" in ginseng("fit", "--help")
    assert "No such command 'fitt'" in ginseng("fitt", fails=True)


def test_as_a_program(counts):
    done = subprocess.run(
        [sys.executable, "-m", "ginseng", "fit", counts, "--label", "x", "-o", "m.h5"], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error: label column 'x' is not in adata.obs")
    assert "Traceback" not in done.stderr


HELD_OUT = {
    "pbmc_kang_ctrl_8donors.h5ad": ("donor in ['101', '1015']", 0.88),
    "pancreas_baron_human_sub.h5ad": ("donor == 'human4'", 0.9),
    "pbmc3k.h5ad": ("index.str[6] == 'C'", 0.8),
}


@pytest.mark.parametrize("name", HELD_OUT)
def test_real_cells_that_were_held_out(real_data, tmp_path, name):
    cells, at_least = HELD_OUT[name]
    data, model = real_data(name), tmp_path / "m.h5"
    options = ["--label", "cell_type", "--cells", f"not ({cells})", "--genes", 400, "--epochs", 3, "--batch-size", 64]
    ginseng("fit", data, *options, "-o", model, "-q")
    output = ginseng("annotate", model, data, "--cells", cells, "--truth", "cell_type", "-o", tmp_path / "a.csv", "-q")
    accuracy = float(output.split("accuracy ")[1].split()[0])
    assert accuracy > at_least, output


class TestReport:
    def test_annotated_cells_get_a_page_and_multiqc_their_counts(self, model, counts, tmp_path):
        ginseng("annotate", model, counts, "-o", tmp_path / "a.h5ad", "-q")
        page, content = tmp_path / "r.html", tmp_path / "a_mqc.json"
        given = ["report", tmp_path / "a.h5ad", "-o", page]
        output = ginseng(*given, "--truth", "cell_type", "--model", model, "--mqc", content, "--sample", "donor")
        assert f"120 cells: saved {page}" in output
        assert "3 cell types, hidden dimension 8" in page.read_text()
        assert "<h1>a.h5ad</h1>" in page.read_text()
        assert set(json.loads(content.read_text())["data"]) == {"d1", "d2", "d3", "d4"}
        assert "--sample is for --mqc" in ginseng(*given, "--sample", "donor", fails=2)
        assert "page.html" not in ginseng(*given, "--overwrite", "-q")
        page = tmp_path / "other.html"
        assert "is not in the annotated cells" in ginseng("report", counts, "-o", page, fails=3)
        assert "There is no" in ginseng("report", tmp_path / "none.h5ad", "-o", page, fails=1)
        assert "holds no annotated cells" in ginseng("report", model, "-o", page, fails=3)
        assert "r.pdf must end in .html" in ginseng(*given[:-1], tmp_path / "r.pdf", fails=2)
        assert "other.csv must end in _mqc.json" in ginseng(*given, "--mqc", tmp_path / "other.csv", fails=2)
        assert not page.exists()

    def test_contributions_of_genes_are_a_table(self, model, counts, tmp_path):
        table = tmp_path / "why.csv"
        output = ginseng("explain", model, counts, "--groupby", "cell_type", "--n-genes", 2, "-o", table)
        found = pd.read_csv(table)
        assert list(found) == ["group", "type", "gene", "contribution", "mean_expression", "share"]
        assert set(found["group"]) == {"B cell", "NK cell", "T cell"}
        assert f"{found['gene'].nunique()} genes, 3 groups: saved" in output


class TestFinetune:
    @pytest.fixture
    def tune(self, model, tmp_path):
        simulate(n_types=4, n_cells=200).write_h5ad(tmp_path / "new.h5ad")

        def run(*options, data=tmp_path / "new.h5ad", **fails):
            named = [] if "cells.zarr" in str(data) else ["--label", "cell_type"]
            return ginseng("finetune", model, data, *named, "-o", tmp_path / "tuned", *options, *NEW_OR_TUNED, **fails)

        return run

    def test_it_tells_what_was_gained(self, tune, tmp_path):
        output = tune("--holdout", 0.2)
        assert "held-out cells of the new data: macro-F1 0." in output
        assert "gained, by type (cells): γδ T cell +" in output
        assert "4 cell types, 30 genes: saved" in output
        assert "γδ T cell" in ginseng("inspect", tmp_path / "tuned.h5")

    def test_every_option(self, tune, counts, tmp_path):
        ginseng("create", counts, "--label", "cell_type", "-o", tmp_path / "old.zarr", "--genes", 0, "--holdout", 0.2)
        table = tmp_path / "names.csv"
        table.write_text("γδ T cell,T cell\nNK cell,\n")
        lost = tmp_path / "lost.csv"
        lost.write_text("NK cell,\n")
        options = ["--mapping", table, "--relabel", lost, "--old", tmp_path / "old.zarr", "--replay", 0.25]
        options += ["--freeze", "features1", "--freeze", "features2", "--rate", "head=2", "--rate", "attn1=0.5"]
        output = tune(*options, "--group", "donor", "--hold-out-groups", "--holdout", 0.3, "--calibrate", "none")
        assert "2 cell types, 30 genes" in output
        assert "held-out cells of the old data" in output

    def test_the_genes_of_the_data(self, tune, tmp_path):
        adata = simulate(n_cells=200)
        adata.var_names = [f"NEW{nth}" if nth < 10 else name for nth, name in enumerate(adata.var_names)]
        adata.write_h5ad(tmp_path / "other.h5ad")
        output = tune("--genes", "dataset", data=tmp_path / "other.h5ad")
        assert "20 genes of the model are kept, 10 are dropped, 10 are new" in output

    def test_a_dataset_that_was_made_before(self, tune, counts, tmp_path):
        ginseng("create", counts, "--label", "cell_type", "-o", tmp_path / "cells.zarr", "--genes", 0, "--holdout", 0.3)
        assert "has been split before: 36 cells are held out" in tune(data=tmp_path / "cells.zarr")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--genes", "500"], "--genes must be one of model, dataset, but got '500'"),
            (["--rate", "head"], "--rate takes part=factor, such as features1=0.1, but got 'head'"),
            (["--rate", "heads=1"], "did you mean 'head'"),
            (["--freeze", "trunks"], "did you mean 'trunk'"),
            (["--old", "nowhere.zarr"], "nowhere.zarr"),
            (["--mapping", "nowhere.csv"], "nowhere.csv"),
            (["--replay", "-1"], "--replay must lie in"),
        ],
    )
    def test_errors_are_one_line_and_nothing_is_written(self, tune, tmp_path, options, message):
        output = tune(*options, fails=True)
        assert message in output.replace("\n", " ")
        assert "Traceback" not in output
        assert not (tmp_path / "tuned.h5").exists()
