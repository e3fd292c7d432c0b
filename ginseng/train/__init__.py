"""Training: trainers, the optimiser, augmentation, metrics."""

from ginseng.train.opt import adam_l2
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings, Trainer

__all__ = ["GinsengClassifierTrainer", "GinsengClassifierTrainerSettings", "Trainer", "adam_l2"]
