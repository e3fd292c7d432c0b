"""Training: trainers, what they are composed of, the optimiser, augmentation, metrics."""

from ginseng.train.loop import Trainer
from ginseng.train.opt import adam_l2
from ginseng.train.recipe import Recipe, Sampling
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings

__all__ = ["GinsengClassifierTrainer", "GinsengClassifierTrainerSettings", "Recipe", "Sampling", "Trainer", "adam_l2"]
