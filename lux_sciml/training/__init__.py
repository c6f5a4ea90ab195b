"""Training on minibatches: a state, a step, and the loop around them.

In this order, each file using those before it: `state` (what a run carries) and `step` (the gradient and the update).
"""

from .state import LossScale as LossScale, TrainState
from .step import apply_gradients, compute_gradients, train_step

__all__ = ["TrainState", "apply_gradients", "compute_gradients", "train_step"]
