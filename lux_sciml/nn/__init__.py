"""Layers, one concept a file. What the root has is in `__all__`.

Here only: `scaled_dot_product_attention`, `attention_weights`, `apply_rotary` and `rotary_angles`.
"""

from .. import _names
from .attention import (
    MultiHeadAttention,
    attention_weights as attention_weights,
    scaled_dot_product_attention as scaled_dot_product_attention,
)
from .basis import BSplineBasis, ChebyshevBasis, CosineBasis, FourierBasis, LegendreBasis, PolynomialBasis, SineBasis
from .containers import AlternatePrecision, BranchLayer, Chain, Maxout, PairwiseFusion, Parallel, SkipConnection
from .conv import Conv, ConvTranspose
from .deeponet import DeepONet
from .dropout import AlphaDropout, Dropout, RReLU, VariationalHiddenDropout
from .embeddings import Embedding
from .fno import FNO, FourierBlock, SpectralConv
from .fourier_features import FourierFeatures, PeriodicEmbedding
from .hard_constraint import HardConstraint
from .kan import KANLayer
from .linear import Bilinear, Dense, Scale
from .lyapunov import Pinned, PositiveDefinite
from .mlp import MLP, Siren
from .monotone import ConvexMLP, MonotoneMLP
from .norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .pool import (
    AdaptiveLPPool,
    AdaptiveMaxPool,
    AdaptiveMeanPool,
    GlobalLPPool,
    GlobalMaxPool,
    GlobalMeanPool,
    LPPool,
    MaxPool,
    MeanPool,
)
from .positional import (
    LearnedPositionalEmbedding,
    RotaryPositionalEmbedding,
    SinusoidalPositionalEmbedding,
    apply_rotary as apply_rotary,
    rotary_angles as rotary_angles,
)
from .recurrence import BidirectionalRNN, Recurrence, ReverseSequence, StatefulRecurrentCell
from .recurrent_cells import GRUCell, LSTMCell, RecurrentCell, RNNCell, StackedCells
from .shaping import Flatten, NoOp, Reshape, SelectDim
from .spline import Spline
from .stack import RepeatedLayer, Stack
from .tensor_product import TensorProduct
from .transformer import ClassTokens, PatchEmbedding, TransformerEncoderBlock
from .upsample import PixelShuffle, Upsample

__all__ = [
    "FNO",
    "MLP",
    "AdaptiveLPPool",
    "AdaptiveMaxPool",
    "AdaptiveMeanPool",
    "AlphaDropout",
    "AlternatePrecision",
    "BSplineBasis",
    "BatchNorm",
    "BidirectionalRNN",
    "Bilinear",
    "BranchLayer",
    "Chain",
    "ChebyshevBasis",
    "ClassTokens",
    "Conv",
    "ConvTranspose",
    "ConvexMLP",
    "CosineBasis",
    "DeepONet",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "FourierBasis",
    "FourierBlock",
    "FourierFeatures",
    "GRUCell",
    "GlobalLPPool",
    "GlobalMaxPool",
    "GlobalMeanPool",
    "GroupNorm",
    "HardConstraint",
    "InstanceNorm",
    "KANLayer",
    "LPPool",
    "LSTMCell",
    "LayerNorm",
    "LearnedPositionalEmbedding",
    "LegendreBasis",
    "MaxPool",
    "Maxout",
    "MeanPool",
    "MonotoneMLP",
    "MultiHeadAttention",
    "NoOp",
    "PairwiseFusion",
    "Parallel",
    "PatchEmbedding",
    "PeriodicEmbedding",
    "Pinned",
    "PixelShuffle",
    "PolynomialBasis",
    "PositiveDefinite",
    "RMSNorm",
    "RNNCell",
    "RReLU",
    "Recurrence",
    "RecurrentCell",
    "RepeatedLayer",
    "Reshape",
    "ReverseSequence",
    "RotaryPositionalEmbedding",
    "Scale",
    "SelectDim",
    "SineBasis",
    "SinusoidalPositionalEmbedding",
    "Siren",
    "SkipConnection",
    "SpectralConv",
    "Spline",
    "Stack",
    "StackedCells",
    "StatefulRecurrentCell",
    "TensorProduct",
    "TransformerEncoderBlock",
    "Upsample",
    "VariationalHiddenDropout",
]

__dir__ = _names.public(__name__)
