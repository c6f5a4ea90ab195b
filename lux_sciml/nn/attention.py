"""Attention: of arrays, and as a layer."""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp

from ..core import Container, Layer
from .dropout import Dropout
from .linear import Dense
from .shaping import NoOp


def attention_weights(
    query: Any, key: Any, *, mask: Any = None, bias: Any = None, is_causal: bool = False, scale: float | None = None
) -> jax.Array:
    r"""Who attends to whom: :math:`\mathrm{softmax}_k(s\, q \cdot k + \mathrm{bias})`, `(..., heads, queries, keys)`.

    `query` is `(..., queries, heads, size)`, `key` `(..., keys, kv_heads, size)`, where `kv_heads` divides `heads`:
    neighboring query heads then share a key head. `mask` (`True` = keep) and `bias` broadcast to the result, so that a
    mask of the keys of each sample is `(batch, 1, 1, keys)`. With `is_causal` query i sees the keys 0 to i. The `scale`
    s is 1/sqrt(size) by default. A query with nothing to see attends to all keys alike. Half-precision logits are
    normalized in float32. Raises `ValueError` for heads and sizes that do not fit.

    >>> attention_weights(jnp.ones((2, 1, 4)), jnp.ones((2, 1, 4)), is_causal=True)[0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    _require_fit(query, key)
    wide = jnp.float32 if jnp.finfo(query.dtype).bits < 32 else None
    q, k = _heads_first(query) * (query.shape[-1] ** -0.5 if scale is None else scale), _heads_first(key)
    logits = jnp.einsum("...qd,...kd->...qk", _stacked(q, k), k, preferred_element_type=wide)
    logits = logits.reshape(*logits.shape[:-3], *q.shape[-3:-1], k.shape[-2])
    if bias is not None:
        logits = logits + bias
    if is_causal:
        causal = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        mask = causal if mask is None else mask & causal
    if mask is not None:
        logits = jnp.where(mask, logits, -0.7 * jnp.finfo(logits.dtype).max)  # not -inf: 0/0 in rows without keys
    return jax.nn.softmax(logits, axis=-1).astype(query.dtype)


def weighted_values(weights: Any, value: Any) -> jax.Array:
    """The values mixed by attention weights: `(..., heads, queries, keys)` and `(..., keys, kv_heads, size)` give
    `(..., queries, heads, size)`."""
    v = _heads_first(value)
    y = _stacked(weights, v) @ v
    return _heads_first(y.reshape(*y.shape[:-3], *weights.shape[-3:-1], v.shape[-1]))


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    r"""Attention, :math:`\mathrm{softmax}_k(s\, q \cdot k + \mathrm{bias})\, v`, `(..., queries, heads, size)`.

    `value` is `(..., keys, kv_heads, value_size)`; the other arguments are those of `attention_weights`.

    Vaswani et al., "Attention is all you need", NeurIPS 2017; grouped queries: Ainslie et al., EMNLP 2023.

    >>> scaled_dot_product_attention(jnp.ones((5, 2, 4)), jnp.ones((7, 2, 4)), jnp.ones((7, 2, 4))).shape
    (5, 2, 4)
    """
    _require_fit(query, key, value)
    weights = attention_weights(query, key, mask=mask, bias=bias, is_causal=is_causal, scale=scale)
    return weighted_values(weights, value)


class MultiHeadAttention(Container):
    r"""Attention in several heads, between linear maps of queries, keys and values and one of the result.

    Input: `x` `(..., tokens, features)`, which attends to itself; or a tuple `(query, memory)`, `(query, key, value)`
    or `(query, key, value, mask)`, with a mask (`True` = keep) that broadcasts to `(batch, heads, queries, keys)`.
    Output `(..., queries, out_features)`; with `return_weights` a tuple of it and the weights
    `(batch, heads, queries, keys)`, after dropout.

    `heads` divides `features`. Keys and values may have features of their own, `key_features` and `value_features`;
    all heads together have `qk_features` for queries and keys and `v_features` for values (default: `features`). With
    fewer `kv_heads` than heads, neighboring heads share keys and values (grouped queries). In training, weights are
    dropped out at `dropout_rate`. Children: `query`, `key`, `value`, `output`, each a `Dense`, and `dropout`.

    Vaswani et al., "Attention is all you need", NeurIPS 2017. Raises `ValueError` for numbers that do not divide.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.MultiHeadAttention(16, 4, is_causal=True)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 5, 16)
    """

    features: int
    heads: int = 1
    key_features: int | None = field(default=None, kw_only=True)
    value_features: int | None = field(default=None, kw_only=True)
    qk_features: int | None = field(default=None, kw_only=True)
    v_features: int | None = field(default=None, kw_only=True)
    out_features: int | None = field(default=None, kw_only=True)
    kv_heads: int | None = field(default=None, kw_only=True)
    use_bias: bool = field(default=True, kw_only=True)
    dropout_rate: float = field(default=0.0, kw_only=True)
    is_causal: bool = field(default=False, kw_only=True)
    return_weights: bool = field(default=False, kw_only=True)
    query: Layer = field(init=False)
    key: Layer = field(init=False)
    value: Layer = field(init=False)
    output: Layer = field(init=False)
    dropout: Layer = field(init=False)

    def __post_init__(self):
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        qk, v = (self.features if n is None else n for n in (self.qk_features, self.v_features))
        for what, total, parts in (("features", qk, self.heads), ("value features", v, self.heads),
                                   ("heads", self.heads, kv_heads)):  # fmt: skip
            if parts < 1 or total % parts:
                by = "groups of kv_heads" if what == "heads" else "heads"
                raise ValueError(f"MultiHeadAttention cannot split {total} {what} into {parts} {by}")
        key_features = self.key_features or self.features
        self.query = Dense(self.features, qk, use_bias=self.use_bias)
        self.key = Dense(key_features, qk // self.heads * kv_heads, use_bias=self.use_bias)
        value_features = self.value_features or key_features
        self.value = Dense(value_features, v // self.heads * kv_heads, use_bias=self.use_bias)
        self.output = Dense(v, self.out_features or self.features, use_bias=self.use_bias)
        self.dropout = Dropout(self.dropout_rate) if self.dropout_rate else NoOp()

    def forward(self, x, ps, st):
        query, key, value, mask = _inputs(x)
        (q, k, v), st = self.run(ps, st, query=query, key=key, value=value)
        kv_heads = self.kv_heads or self.heads
        q, k, v = (_split(part, heads) for part, heads in ((q, self.heads), (k, kv_heads), (v, kv_heads)))
        if self.return_weights or self.dropout_rate:
            weights = attention_weights(q, k, mask=mask, is_causal=self.is_causal)
            (weights,), st = self.run(ps, st, dropout=weights)
            mixed = weighted_values(weights, v)
        else:
            mixed = scaled_dot_product_attention(q, k, v, mask=mask, is_causal=self.is_causal)
        (y,), st = self.run(ps, st, output=mixed.reshape(*mixed.shape[:-2], -1))
        return (y, weights) if self.return_weights else y, st


def _inputs(x: Any) -> tuple[Any, Any, Any, Any]:
    """Query, key, value and mask."""
    parts = x if isinstance(x, tuple) else (x,)
    if not 1 <= len(parts) <= 4:
        raise ValueError(
            "attention takes x, (query, memory), (query, key, value) or (query, key, value, mask), got a tuple of "
            f"{len(parts)}"
        )
    return (*parts, *(parts[-1],) * (3 - len(parts)), None)[:4]


def _heads_first(x: Any) -> jax.Array:
    """`(..., tokens, heads, size)` as `(..., heads, tokens, size)`, which matrix products take as it is; and back."""
    return jnp.swapaxes(x, -3, -2)


def _stacked(x: Any, like: Any) -> jax.Array:
    """`(..., heads, queries, n)` as `(..., kv_heads, heads / kv_heads * queries, n)`: queries that share a key head."""
    kv_heads = like.shape[-3]
    return x.reshape(*x.shape[:-3], kv_heads, x.shape[-3] // kv_heads * x.shape[-2], x.shape[-1])


def _split(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], heads, -1)


def _require_fit(query: Any, key: Any, value: Any = None) -> None:
    heads, kv_heads = query.shape[-2], key.shape[-2]
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"queries have {query.shape[-1]} features a head, keys {key.shape[-1]}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not split into groups for {kv_heads} key heads")
    if value is not None and value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"values of shape {value.shape} do not belong to keys of shape {key.shape}")
