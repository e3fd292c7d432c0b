"""Training: trainers, the optimiser, augmentation, metrics."""

from ginseng.train.loop import Trainer
from ginseng.train.opt import adam_l2
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings

__all__ = ["GinsengClassifierTrainer", "GinsengClassifierTrainerSettings", "Trainer", "adam_l2"]
