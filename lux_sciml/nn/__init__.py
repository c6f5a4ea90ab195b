"""Layers, one concept a file."""

from .attention import (
    MultiHeadAttention as MultiHeadAttention,
    attention_weights as attention_weights,
    scaled_dot_product_attention as scaled_dot_product_attention,
)
from .basis import (
    BSplineBasis as BSplineBasis,
    ChebyshevBasis as ChebyshevBasis,
    CosineBasis as CosineBasis,
    FourierBasis as FourierBasis,
    LegendreBasis as LegendreBasis,
    PolynomialBasis as PolynomialBasis,
    SineBasis as SineBasis,
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
from .deeponet import DeepONet as DeepONet
from .dropout import (
    AlphaDropout as AlphaDropout,
    Dropout as Dropout,
    VariationalHiddenDropout as VariationalHiddenDropout,
)
from .embeddings import FourierFeatures as FourierFeatures, PeriodicEmbedding as PeriodicEmbedding
from .fno import FNO as FNO, FourierBlock as FourierBlock, SpectralConv as SpectralConv
from .hamiltonian import HamiltonianNN as HamiltonianNN, LagrangianNN as LagrangianNN
from .kan import KANLayer as KANLayer
from .linear import Bilinear as Bilinear, Dense as Dense, Embedding as Embedding, Scale as Scale
from .lyapunov import PositiveDefinite as PositiveDefinite, ShiftTo as ShiftTo
from .mlp import MLP as MLP
from .monotone import ConvexMLP as ConvexMLP, MonotoneMLP as MonotoneMLP
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
    LearnedPositionalEmbedding as LearnedPositionalEmbedding,
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
from .rrelu import RReLU as RReLU
from .siren import Siren as Siren
from .spline import Spline as Spline
from .stack import RepeatedLayer as RepeatedLayer, Stack as Stack
from .tensor_product import TensorProduct as TensorProduct
from .transformer import (
    ClassTokens as ClassTokens,
    PatchEmbedding as PatchEmbedding,
    TransformerEncoderBlock as TransformerEncoderBlock,
)
from .upsample import PixelShuffle as PixelShuffle, Upsample as Upsample
from .utilities import Flatten as Flatten, NoOp as NoOp, Reshape as Reshape, SelectDim as SelectDim
