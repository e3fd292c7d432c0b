"""Every documented name exists where it is documented, with the documented parameters and defaults."""

import importlib
import inspect

import pytest

DOCUMENTED = {
    "data.dataset": {
        "GinsengDataset.create": (
            "path adata label_key layer=None genes=None group_key=None chunk_size=4096 overwrite=True"
        ),
        "GinsengDataset.make_split": "self fraction=0.1 stratify_group=False seed=123",
        "GinsengDataset.stream": "self batch_size split='train' balance_labels=False shuffle=True",
        "GinsengDataset._load_metadata": "self",
    },
    "data.io": {
        "read_10x_mtx": "path var_names='gene_symbols' make_unique=True",
        "read_10x_h5": "path genome=None var_names='gene_symbols' make_unique=True",
        "read_adata": "path backed=True",
        "save_model": "state path",
        "load_model": "path",
        "_load_pytree": "group",
        "_save_pytree": "group pytree",
    },
    "model.instance": {
        "GinsengClassifier": (
            "n_genes n_classes hidden_dim=256 dropout_rate=0.5 normalize=True target_sum=10000.0 seed=42"
        ),
        "GinsengClassifier._get_key": "self",
        "GinsengClassifier.predict": "self x params=None key=None training=False return_attn=False",
        "GinsengClassifier.loss": "self params key x y",
        "GinsengClassifier.evaluate": "self x y",
        "nn_normalize": "x target_sum=10000.0",
        "nn_annotate_init": "key n_genes n_classes hidden_dim=256",
        "nn_annotate": (
            "params key x dropout_rate=0.5 normalize=True target_sum=10000.0 return_attn=False training=True"
        ),
        "nn_annotate_loss": "params key x y dropout_rate=0.5 normalize=True target_sum=10000.0",
        "nn_annotate_evaluate": "params key x y dropout_rate=0.5 normalize=True target_sum=10000.0",
    },
    "model.nn": {
        "nn_xavier_uniform": "key shape",
        "nn_init_linear": "key in_dim out_dim",
        "nn_linear": "params x",
        "nn_dropout": "key x rate training=True",
    },
    "model.predict": {
        "_get_gene_indices": "adata gene_names gene_key",
        "annotate_iter": "adata gene_names gene_key=None layer=None batch_size=512",
        "classify": (
            "model_state adata gene_key=None layer=None backed=True normalize=None target_sum=None randomness=False "
            "batch_size=256 copy=False store_probs=False return_table=False seed=123 silent=False"
        ),
    },
    "model.state": {
        "GinsengClassifierState": (
            "params genes label_keys label_values n_genes n_classes hidden_dim normalize target_sum dropout_rate "
            "training=False"
        ),
        "classifier_from_state": "state",
        "state_from_classifier_trainer": "trainer",
    },
    "train.augment": {
        "augment_mask": "key x rate=0.1",
        "augment_background": "key x lam_max=0.1",
        "augment_dropgene": "key x lower=0 upper=2",
        "augment": "key x rate=0.1 lam_max=0.1 lower=0 upper=2",
    },
    "train.logger": {
        "GinsengLogger.update": "self epoch train_loss holdout_loss holdout_accuracy",
        "GinsengLogger.report": "self silent=False flush=True",
    },
    "train.opt": {
        "AdamState": "step m v",
        "opt_init_adam": "params",
        "opt_adam_update": "grads params state lr=0.001 betas=(0.9, 0.999) eps=1e-08 weight_decay=0.0",
    },
    "train.trainer": {
        "GinsengClassifierTrainerSettings": "",
        "GinsengClassifierTrainer.fit": "self epochs=10 silent=False",
        "GinsengClassifierTrainer._train_step": "self",
        "GinsengClassifierTrainer._run_epoch": "self",
        "GinsengClassifierTrainer._validate": "self",
    },
    "utils.hvg": {
        "select_hvgs": (
            "adata n_top_genes=5000 layer=None target_sum=10000.0 min_mean=0.025 max_mean=0.995 n_bins=20 "
            "chunk_size=5000 silent=False copy=False"
        ),
    },
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in DOCUMENTED.items() for name in names])
def test_documented(module, name):
    found = importlib.import_module(f"ginseng.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()
    written = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    documented = DOCUMENTED[module][name].replace(", ", ",").split()
    assert [each.replace(", ", ",") for each in written[: len(documented)]] == documented
    if not found.__name__.startswith("_"):
        further = list(parameters)[len(documented) :]
        assert all(p.default is not p.empty for p in further), "what goes beyond the documentation is optional"
