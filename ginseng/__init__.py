"""Cell-type annotation for single-cell RNA-seq with a gene-attention classifier on JAX, Equinox and Optax."""

from ginseng.data.dataset import GinsengDataset
from ginseng.data.io import load_model, read_adata, save_model
from ginseng.model.attention import AttentionClassifier
from ginseng.model.instance import GinsengClassifier
from ginseng.model.predict import classify
from ginseng.model.state import GinsengClassifierState, classifier_from_state, state_from_classifier_trainer
from ginseng.train.loop import Trainer
from ginseng.train.opt import adam_l2
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
from ginseng.utils.hvg import select_hvgs

__all__ = [
    "AttentionClassifier",
    "GinsengClassifier",
    "GinsengClassifierState",
    "GinsengClassifierTrainer",
    "GinsengClassifierTrainerSettings",
    "GinsengDataset",
    "Trainer",
    "adam_l2",
    "classifier_from_state",
    "classify",
    "load_model",
    "read_adata",
    "save_model",
    "select_hvgs",
    "state_from_classifier_trainer",
]
