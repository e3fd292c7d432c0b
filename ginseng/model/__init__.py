"""The network and its state."""

from ginseng.model.attention import AttentionClassifier
from ginseng.model.instance import GinsengClassifier
from ginseng.model.state import GinsengClassifierState

__all__ = ["AttentionClassifier", "GinsengClassifier", "GinsengClassifierState"]
