"""Cell-type annotation for single-cell RNA-seq with a gene-attention classifier on JAX, Equinox and Optax.

The names here are imported as they are first used (PEP 562), so that ``import ginseng`` itself is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ginseng import cluster as cluster
    from ginseng import data as data
    from ginseng import demo as demo
    from ginseng import metrics as metrics
    from ginseng import model as model
    from ginseng import plot as plot
    from ginseng import train as train
    from ginseng import utils as utils
    from ginseng.data.dataset import GinsengDataset
    from ginseng.data.io import load_model, read_adata, save_model
    from ginseng.data.selection import select_markers
    from ginseng.model.annotator import Annotator, load_annotator, save_annotator
    from ginseng.model.attention import AttentionClassifier
    from ginseng.model.ensemble import Ensemble
    from ginseng.model.explain import explain
    from ginseng.model.harmony import harmonize
    from ginseng.model.instance import GinsengClassifier
    from ginseng.model.predict import classify
    from ginseng.model.state import GinsengClassifierState, classifier_from_state, state_from_classifier_trainer
    from ginseng.multiqc import mqc
    from ginseng.reporting import report
    from ginseng.train.finetuning import finetune
    from ginseng.train.loop import Trainer
    from ginseng.train.opt import adam_l2
    from ginseng.train.recipe import Recipe, Sampling
    from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
    from ginseng.utils.hvg import select_hvgs

__all__ = [
    "Annotator",
    "AttentionClassifier",
    "Ensemble",
    "GinsengClassifier",
    "GinsengClassifierState",
    "GinsengClassifierTrainer",
    "GinsengClassifierTrainerSettings",
    "GinsengDataset",
    "Recipe",
    "Sampling",
    "Trainer",
    "adam_l2",
    "classifier_from_state",
    "classify",
    "explain",
    "finetune",
    "harmonize",
    "load_annotator",
    "load_model",
    "mqc",
    "read_adata",
    "report",
    "save_annotator",
    "save_model",
    "select_hvgs",
    "select_markers",
    "state_from_classifier_trainer",
]

_MODULES = ("cluster", "data", "demo", "metrics", "model", "plot", "train", "utils")
_NAMES_OF = {
    "data.dataset": ["GinsengDataset"],
    "data.io": ["load_model", "read_adata", "save_model"],
    "data.selection": ["select_markers"],
    "model.annotator": ["Annotator", "load_annotator", "save_annotator"],
    "model.attention": ["AttentionClassifier"],
    "model.ensemble": ["Ensemble"],
    "model.explain": ["explain"],
    "model.harmony": ["harmonize"],
    "model.instance": ["GinsengClassifier"],
    "model.predict": ["classify"],
    "model.state": ["GinsengClassifierState", "classifier_from_state", "state_from_classifier_trainer"],
    "multiqc": ["mqc"],
    "reporting": ["report"],
    "train.finetuning": ["finetune"],
    "train.loop": ["Trainer"],
    "train.opt": ["adam_l2"],
    "train.recipe": ["Recipe", "Sampling"],
    "train.trainer": ["GinsengClassifierTrainer", "GinsengClassifierTrainerSettings"],
    "utils.hvg": ["select_hvgs"],
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ginseng.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ginseng' has no attribute '{name}'")
    globals()[name] = found = getattr(importlib.import_module(f"ginseng.{_MODULE_OF[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *__all__})
