"""Training on minibatches: a state, a step, and the loop around them.

At the root: `TrainState`, `train_step`, `compute_gradients`, `apply_gradients`, `fit` and its `FitResult`. Here:
`Checkpoints`, `OrbaxCheckpoints` for what is sharded, `EarlyStopping`, the logs `CSVLog` and `TensorBoardLog`, a batch
that is filled, `Padded`, what callbacks are given, a `Report`, what a run raises, `FitError`, and the `LossScale` of
float16.

In this order, each file using those before it: `placement` (on one device or many), `state` (what a run carries),
`step` (the gradient and the update), `batches`, `advance` (the programs of a run), `validation`, `stopping` (early, and
the best so far), `checkpoints`, `orbax_checkpoints`, `logs`, `interrupts` (Ctrl-C), `result`, `run` (the loop) and
`fit`.
"""

from .. import _names
from .batches import Padded as Padded
from .checkpoints import Checkpoints as Checkpoints
from .fit import fit
from .logs import CSVLog as CSVLog, TensorBoardLog as TensorBoardLog
from .orbax_checkpoints import OrbaxCheckpoints as OrbaxCheckpoints
from .result import FitError as FitError, FitResult, Report as Report
from .state import LossScale as LossScale, TrainState
from .step import apply_gradients, compute_gradients, train_step
from .stopping import EarlyStopping as EarlyStopping

__all__ = ["FitResult", "TrainState", "apply_gradients", "compute_gradients", "fit", "train_step"]

__dir__ = _names.public(__name__)
