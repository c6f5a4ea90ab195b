"""Attention: of arrays, and as a layer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .._tree import floating, widened
from ..core import Container, Layer, field
from ..core.converters import count, flag, optional
from ._shapes import as_floating, as_mask, fraction, require_real
from .dropout import Dropout
from .linear import Dense
from .shaping import NoOp

Queries = Shaped[Array | np.ndarray, "... queries heads size"]
Keys = Shaped[Array | np.ndarray, "... keys kv_heads key_size"]
Values = Shaped[Array | np.ndarray, "... value_keys value_heads value_size"]


def attention_weights(
    query: Queries,
    key: Keys,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "... heads queries keys"]:
    r"""Who attends to whom: :math:`\mathrm{softmax}_k(s\, q \cdot k + \mathrm{bias})`, `(..., heads, queries, keys)`.

    * `query` is `(..., queries, heads, size)`, `key` `(..., keys, kv_heads, size)`, where `kv_heads` divides `heads`:
      neighboring query heads then share a key head.
    * `mask`, of booleans or integers, is true where a query sees a key. It broadcasts to the result, so that a mask of
      the keys of each sample is `(batch, 1, 1, keys)`. Keys that no query sees, and queries that see no key, count as
      zeros: what they hold, NaN too, changes neither values nor gradients. A query that sees no key attends to all keys
      alike. A key that is not finite makes NaN of the queries that see it, and changes nothing of the others.
    * `bias`, in floating point, is added to the logits and broadcasts as `mask` does.
    * `is_causal`: query i sees the keys 0 to i.
    * `scale`: s, by default 1/sqrt(size).

    Half-precision logits are computed and normalized in float32. Raises `ValueError` for heads and sizes that do not
    fit, `TypeError` for a mask in floating point and for a bias of booleans.

    >>> attention_weights(jnp.ones((2, 1, 4)), jnp.ones((2, 1, 4)), is_causal=True)[0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    _require_fit(query, key)
    seen = visible(mask, is_causal, query.shape[-3], key.shape[-3])
    (query, key), spoiled = finite_tokens(floating(query), [floating(key)], seen, 2)
    weights = _finite_weights(query, key, seen, bias, scale)
    return weights if spoiled is None else jnp.where(spoiled[..., None], jnp.nan, weights)


def _finite_weights(query: Array, key: Array, seen: Array | None, bias: Any, scale: float | None) -> Array:
    """`attention_weights` of `finite_tokens`."""
    dtype = jnp.result_type(query, key)
    q, k = _heads_first(query), _heads_first(key)
    q = q * (query.shape[-1] ** -0.5 if scale is None else scale)
    wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else None
    logits = jnp.einsum("...qd,...kd->...qk", _stacked(q, k), k, preferred_element_type=wide)
    logits = logits.reshape(*logits.shape[:-3], *q.shape[-3:-1], k.shape[-2])
    if bias is not None:
        logits = logits + widened(_as_bias(bias))
    if seen is not None:
        logits = jnp.where(seen, logits, -0.7 * jnp.finfo(logits.dtype).max)  # not -inf: 0/0 in rows without keys
    return jax.nn.softmax(logits, axis=-1).astype(dtype)


def _as_bias(bias: Any) -> Array:
    """What is added to logits. Raises `TypeError` for booleans, which are a mask."""
    bias = jnp.asarray(bias)
    if bias.dtype == bool:
        raise TypeError("a bias is added to the logits, got booleans: what is true where a query sees a key is `mask=`")
    return bias


def weighted_values(weights: Array, value: Array) -> Array:
    """The values mixed by attention weights: `(..., heads, queries, keys)` and `(..., keys, kv_heads, size)` give
    `(..., queries, heads, size)`."""
    v = _heads_first(value)
    y = _stacked(weights, v) @ v
    return _heads_first(y.reshape(*y.shape[:-3], *weights.shape[-3:-1], v.shape[-1]))


def scaled_dot_product_attention(
    query: Queries,
    key: Keys,
    value: Values,
    *,
    mask: Any = None,
    bias: Any = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "... queries heads value_size"]:
    r"""Attention, :math:`\mathrm{softmax}_k(s\, q \cdot k + \mathrm{bias})\, v`, `(..., queries, heads, value_size)`.

    * `query`, `key`, `mask`, `bias`, `is_causal`, `scale`: as in `attention_weights`;
    * `value`: `(..., keys, kv_heads, value_size)`; values that no query sees count as zeros.

    Raises as `attention_weights` does, and `ValueError` for values that do not belong to the keys.

    Vaswani et al., "Attention is all you need", NeurIPS 2017; grouped queries: Ainslie et al., EMNLP 2023.

    >>> scaled_dot_product_attention(jnp.ones((5, 2, 4)), jnp.ones((7, 2, 4)), jnp.ones((7, 2, 4))).shape
    (5, 2, 4)
    """
    _require_fit(query, key, value)
    seen = visible(mask, is_causal, query.shape[-3], key.shape[-3])
    (query, key, value), spoiled = finite_tokens(floating(query), floating([key, value]), seen, 2)
    y = weighted_values(_finite_weights(query, key, seen, bias, scale), value)
    return y if spoiled is None else jnp.where(_heads_first(spoiled[..., None]), jnp.nan, y)


# --- masks ----------------------------------------------------------------------------------------------------------


def visible(mask: Any, is_causal: bool, queries: Any, keys: Any) -> Array | None:
    """Which query sees which key, `(..., queries, keys)` or a shape that broadcasts to it; `None` where all see all."""
    causal = jnp.tril(jnp.ones((queries, keys), bool)) if is_causal else None
    if mask is None:
        return causal
    mask = jnp.atleast_2d(as_mask(mask))
    return mask if causal is None else mask & causal


def without_hidden(x: Array, seen: Array | None, trailing: int) -> Array:
    """`x` `(..., keys, ...)`, with `trailing` axes after the keys, where keys that no query sees are zero.

    Before the computation, not after it: what is masked later only has the gradient 0 * NaN where it is NaN.
    """
    return x if seen is None else _where_any(x, seen, -2, trailing)


def without_blind(x: Array, seen: Array | None, trailing: int) -> Array:
    """`x` `(..., queries, ...)`, with `trailing` axes after the queries, where queries that see no key are zero."""
    return x if seen is None else _where_any(x, seen, -1, trailing)


def finite_tokens(
    query: Array, others: list[Array], seen: Array | None, trailing: int
) -> tuple[list[Array], Array | None]:
    """Queries, and keys and values, with `trailing` axes behind the tokens, where all that is masked is zero; and which
    queries, `(..., heads, queries)` or a shape that broadcasts to it, are to be NaN in the end.

    Where there is a mask, tokens that are not finite are zero too: weights of zero do not stop NaN, neither in a sum
    nor in its gradient. The queries that see one, or are one, are to be NaN instead.
    """
    if seen is None:
        return [query, *others], None
    parts = [without_blind(query, seen, trailing), *(without_hidden(x, seen, trailing) for x in others)]
    (query, bad_query), *keys = (zeroed(x, trailing) for x in parts)
    spoiled = seeing(seen, functools.reduce(jnp.logical_or, [bad for _, bad in keys])) | bad_query[..., None, :]
    return [query, *(key for key, _ in keys)], spoiled


def zeroed(x: Array, trailing: int) -> tuple[Array, Array]:
    """`x` with zeros at tokens that are not finite; and which they are."""
    bad = jnp.any(~jnp.isfinite(x), tuple(range(-trailing, 0)))
    return _without(x, bad, trailing), bad


def seeing(seen: Array, tokens: Array) -> Array:
    """The queries that see one of some tokens: `(..., heads, queries)`, or a shape that broadcasts to it."""
    return jnp.any(seen & tokens[..., None, None, :], -1)


def _without(x: Array, tokens: Array, trailing: int) -> Array:
    """`x` with zeros at tokens."""
    return jnp.where(tokens.reshape(*tokens.shape, *(1,) * trailing), 0, x)


def _where_any(x: Array, seen: Array, axis: int, trailing: int) -> Array:
    """Zero where no head of any sample that `x` is for has True along `axis`."""
    counts = jnp.any(seen, (-3, axis) if seen.ndim > 2 else axis)  # (..., tokens), or one for all
    batch = x.shape[: x.ndim - trailing - 1]
    counts = jnp.any(counts, tuple(range(counts.ndim - 1 - len(batch))))
    sizes = batch[len(batch) - (counts.ndim - 1) :]
    counts = jnp.any(counts, tuple(i for i, size in enumerate(sizes) if size == 1), keepdims=True)
    return _without(x, ~counts, trailing)


# --- the layer ------------------------------------------------------------------------------------------------------


class MultiHeadAttention(Container):
    r"""Attention in several heads, between linear maps of queries, keys and values and one of the result.

    * `features`: the size of the last axis of the queries.
    * `num_heads`: the number of heads, which divides the features of queries and keys and those of values.
    * `key_features`, `value_features`: the sizes of the last axis of keys and values (default: `features` for the keys,
      that of the keys for the values).
    * `qk_features`, `v_features`: the features of all heads together, for queries and keys and for values (default:
      `features`).
    * `out_features`: the size of the last axis of the output (default: `features`).
    * `num_kv_heads`: the number of heads of keys and values, a divisor of `num_heads` (the default); with fewer,
      neighboring heads share keys and values (grouped queries).
    * `use_bias`: whether the linear maps have a bias.
    * `dropout_rate`: the rate at which weights are dropped in training.
    * `is_causal`: token i sees the tokens 0 to i.
    * `return_weights`: whether the output is a tuple of the output and the weights `(batch, heads, queries, keys)`,
      after dropout.

    Input: `x` `(..., tokens, features)`, which attends to itself; or a tuple `(query, memory)`, `(query, key, value)`
    or `(query, key, value, mask)`, with a mask (true where a query sees a key) that broadcasts to `(batch, heads,
    queries, keys)`. Keys and values that no query sees, and queries that see no key, count as zeros; one that is not
    finite makes NaN of the queries that see it, and changes nothing of the others. Output `(..., queries,
    out_features)`. Children: `query`, `key`, `value`, `output`, each a `Dense`, and `dropout`.

    The products are written out: the gradient of `jax.nn.dot_product_attention` takes 1.2 to 1.4 times as long on the
    CPU (`benchmarks/bench_attention.py`).

    Vaswani et al., "Attention is all you need", NeurIPS 2017. Raises `ValueError` for sizes that do not divide, and
    `TypeError` for a mask in floating point.

    >>> import jax, jax.numpy as jnp, lux_sciml as lux
    >>> layer = lux.MultiHeadAttention(16, 4, is_causal=True)
    >>> ps, st = lux.setup(jax.random.key(0), layer)
    >>> layer(jnp.ones((8, 5, 16)), ps, st)[0].shape
    (8, 5, 16)
    """

    features: int = field(converter=count)
    num_heads: int = field(default=1, converter=count)
    key_features: int | None = field(default=None, converter=optional(count), kw_only=True)
    value_features: int | None = field(default=None, converter=optional(count), kw_only=True)
    qk_features: int | None = field(default=None, converter=optional(count), kw_only=True)
    v_features: int | None = field(default=None, converter=optional(count), kw_only=True)
    out_features: int | None = field(default=None, converter=optional(count), kw_only=True)
    num_kv_heads: int | None = field(default=None, converter=optional(count), kw_only=True)
    use_bias: bool = field(default=True, converter=flag, kw_only=True)
    dropout_rate: float = field(default=0.0, converter=fraction, kw_only=True)
    is_causal: bool = field(default=False, converter=flag, kw_only=True)
    return_weights: bool = field(default=False, converter=flag, kw_only=True)
    query: Layer = field(init=False)
    key: Layer = field(init=False)
    value: Layer = field(init=False)
    output: Layer = field(init=False)
    dropout: Layer = field(init=False)

    def __post_init__(self):
        heads, kv_heads = self.num_heads, self.num_kv_heads or self.num_heads
        qk, v = self.qk_features or self.features, self.v_features or self.features
        for what, total, parts, into in (
            ("features", qk, heads, "heads"),
            ("value features", v, heads, "heads"),
            ("heads", heads, kv_heads, "groups of num_kv_heads"),
        ):
            if total % parts:
                raise ValueError(f"MultiHeadAttention cannot split {total} {what} into {parts} {into}")
        key_features = self.key_features or self.features
        self.query = Dense(self.features, qk, use_bias=self.use_bias)
        self.key = Dense(key_features, qk // heads * kv_heads, use_bias=self.use_bias)
        self.value = Dense(self.value_features or key_features, v // heads * kv_heads, use_bias=self.use_bias)
        self.output = Dense(v, self.out_features or self.features, use_bias=self.use_bias)
        self.dropout = Dropout(self.dropout_rate) if self.dropout_rate else NoOp()

    def forward(self, x, ps, st):
        query, key, value, mask = _inputs(self, x)
        seen = visible(mask, self.is_causal, query.shape[-2], key.shape[-2])
        (query, key, value), spoiled = finite_tokens(query, [key, value], seen, 1)
        (q, k, v), st = self.run(ps, st, query=query, key=key, value=value)
        heads, kv_heads = self.num_heads, self.num_kv_heads or self.num_heads
        q, k, v = (_split(part, n) for part, n in ((q, heads), (k, kv_heads), (v, kv_heads)))
        weights = _finite_weights(q, k, seen, None, None)
        (weights,), st = self.run(ps, st, dropout=weights)
        mixed = weighted_values(weights, v)
        (y,), st = self.run(ps, st, output=mixed.reshape(*mixed.shape[:-2], mixed.shape[-2] * mixed.shape[-1]))
        if spoiled is not None:
            y = jnp.where(jnp.any(spoiled, -2)[..., None], jnp.nan, y)
            weights = jnp.where(spoiled[..., None], jnp.nan, weights)
        return (y, weights) if self.return_weights else y, st


def _inputs(layer: Layer, x: Any) -> tuple[Array, Array, Array, Any]:
    """Query, key, value in floating point, and mask."""
    parts = x if isinstance(x, tuple) else (x,)
    if not 1 <= len(parts) <= 4:
        raise ValueError(
            "attention takes x, (query, memory), (query, key, value) or (query, key, value, mask), got a tuple of "
            f"{len(parts)}"
        )
    query, key, value, mask = (*parts, *(parts[-1],) * (3 - len(parts)), None)[:4]
    query, key, value = (as_floating(layer, require_real(layer, part)) for part in (query, key, value))
    return query, key, value, mask


# --- arrays ---------------------------------------------------------------------------------------------------------


def _heads_first(x: Array) -> Array:
    """`(..., tokens, heads, size)` as `(..., heads, tokens, size)`, which matrix products take as it is; and back."""
    return jnp.swapaxes(x, -3, -2)


def _stacked(x: Array, like: Array) -> Array:
    """`(..., heads, queries, n)` as `(..., kv_heads, heads / kv_heads * queries, n)`: queries that share a key head."""
    kv_heads = like.shape[-3]
    return x.reshape(*x.shape[:-3], kv_heads, x.shape[-3] // kv_heads * x.shape[-2], x.shape[-1])


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _require_fit(query: Any, key: Any, value: Any = None) -> None:
    heads, kv_heads = query.shape[-2], key.shape[-2]
    if any(map(jnp.iscomplexobj, (query, key))):
        raise TypeError(f"attention takes real queries and keys, got {query.dtype} and {key.dtype}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"queries have {query.shape[-1]} features a head, keys {key.shape[-1]}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not split into groups for {kv_heads} key heads")
    if value is not None and value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"values of shape {value.shape} do not belong to keys of shape {key.shape}")
