"""Layers, one concept a file."""

from .attention import (
    MultiHeadAttention as MultiHeadAttention,
    attention_weights as attention_weights,
    scaled_dot_product_attention as scaled_dot_product_attention,
)
from .containers import (
    AlternatePrecision as AlternatePrecision,
    BranchLayer as BranchLayer,
    Chain as Chain,
    Maxout as Maxout,
    PairwiseFusion as PairwiseFusion,
    Parallel as Parallel,
    SkipConnection as SkipConnection,
)
from .conv import Conv as Conv, ConvTranspose as ConvTranspose
from .dropout import Dropout as Dropout
from .linear import Bilinear as Bilinear, Dense as Dense, Embedding as Embedding, Scale as Scale
from .norm import (
    BatchNorm as BatchNorm,
    GroupNorm as GroupNorm,
    InstanceNorm as InstanceNorm,
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
)
from .pool import (
    AdaptiveLPPool as AdaptiveLPPool,
    AdaptiveMaxPool as AdaptiveMaxPool,
    AdaptiveMeanPool as AdaptiveMeanPool,
    GlobalLPPool as GlobalLPPool,
    GlobalMaxPool as GlobalMaxPool,
    GlobalMeanPool as GlobalMeanPool,
    LPPool as LPPool,
    MaxPool as MaxPool,
    MeanPool as MeanPool,
)
from .positional import (
    RotaryPositionalEmbedding as RotaryPositionalEmbedding,
    SinusoidalPositionalEmbedding as SinusoidalPositionalEmbedding,
    apply_rotary as apply_rotary,
    rotary_angles as rotary_angles,
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
from .transformer import (
    ClassTokens as ClassTokens,
    PatchEmbedding as PatchEmbedding,
    TransformerEncoderBlock as TransformerEncoderBlock,
)
from .upsample import PixelShuffle as PixelShuffle, Upsample as Upsample
from .utilities import Flatten as Flatten, NoOp as NoOp, Reshape as Reshape, SelectDim as SelectDim
