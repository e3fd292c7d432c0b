"""Training: trainers, what they are composed of, the optimiser, augmentation, metrics."""

from ginseng.train.finetuning import finetune, tuning_settings
from ginseng.train.loop import Trainer
from ginseng.train.opt import adam_l2
from ginseng.train.recipe import Recipe, Sampling
from ginseng.train.trainer import GinsengClassifierTrainer, GinsengClassifierTrainerSettings
from ginseng.train.tuned import FineTuned

__all__ = [
    "FineTuned",
    "GinsengClassifierTrainer",
    "GinsengClassifierTrainerSettings",
    "Recipe",
    "Sampling",
    "Trainer",
    "adam_l2",
    "finetune",
    "tuning_settings",
]
