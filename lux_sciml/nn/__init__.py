"""Layers, one concept a file."""

from .containers import (
    AlternatePrecision as AlternatePrecision,
    BranchLayer as BranchLayer,
    Chain as Chain,
    Maxout as Maxout,
    PairwiseFusion as PairwiseFusion,
    Parallel as Parallel,
    SkipConnection as SkipConnection,
)
from .dropout import Dropout as Dropout
from .linear import Dense as Dense
from .norm import (
    BatchNorm as BatchNorm,
    GroupNorm as GroupNorm,
    InstanceNorm as InstanceNorm,
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
)
from .recurrence import (
    BidirectionalRNN as BidirectionalRNN,
    Recurrence as Recurrence,
    ReverseSequence as ReverseSequence,
    StatefulRecurrentCell as StatefulRecurrentCell,
)
from .recurrent_cells import (
    GRUCell as GRUCell,
    LSTMCell as LSTMCell,
    RecurrentCell as RecurrentCell,
    RNNCell as RNNCell,
    StackedCells as StackedCells,
)
from .stack import RepeatedLayer as RepeatedLayer, Stack as Stack
