"""Recurrent and attention layers against PyTorch's, with the same weights: outputs and gradients to 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lux_sciml as lux

torch = pytest.importorskip("torch", reason="compares with PyTorch: `make test-extras` installs it")

RNG = np.random.default_rng(0)


def compare(layer, ps, x, theirs, their_weights):
    """Compare outputs and gradients of the sum of squares with respect to the input and to every named parameter."""
    st = lux.testmode(lux.setup(jax.random.key(0), layer)[1])

    def loss(ps, x):
        y = layer(x, ps, st)[0]
        return jnp.sum(y**2), y

    (gradient, of_input), y = jax.grad(loss, (0, 1), has_aux=True)(ps, jnp.asarray(x))
    x = torch.tensor(np.array(x), requires_grad=True)
    their_y = theirs(x)
    (their_y**2).sum().backward()
    assert np.allclose(y, their_y.detach(), atol=1e-5)
    assert np.allclose(of_input, x.grad, atol=1e-5)
    for path, weight in their_weights.items():
        assert np.allclose(gradient[path], weight.grad.numpy().T, atol=1e-5), path


CELLS = {"RNN": lux.RNNCell, "LSTM": lux.LSTMCell, "GRU": lux.GRUCell}


def loaded(theirs, layer=0, suffix=""):
    """The weights of a torch recurrence as our parameters, and the tensors themselves by the same names."""
    names = {
        f"{kind}_{side}": f"{kind}_{side}_l{layer}{suffix}" for kind in ("weight", "bias") for side in ("ih", "hh")
    }
    tensors = {name: getattr(theirs, theirs_name) for name, theirs_name in names.items()}
    return {name: jnp.asarray(tensor.detach().numpy().T) for name, tensor in tensors.items()}, tensors


@pytest.mark.parametrize("kind", CELLS)
def test_recurrence(kind):
    theirs = getattr(torch.nn, kind)(2, 3, batch_first=True, dtype=torch.float64)
    ps, tensors = loaded(theirs)
    ours = lux.Recurrence(CELLS[kind](2, 3), return_sequence=True)
    compare(ours, ps, RNG.normal(size=(4, 5, 2)), lambda x: theirs(x)[0], tensors)


def test_stacked_bidirectional_lstm():
    theirs = torch.nn.LSTM(2, 3, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64)
    ours = lux.Chain(lux.BidirectionalRNN(lux.LSTMCell(2, 3)), lux.BidirectionalRNN(lux.LSTMCell(6, 3)))
    ps, tensors = {}, {}
    for layer in range(2):
        ps[f"layer_{layer}"] = {}
        for child, suffix in (("cell", ""), ("backward_cell", "_reverse")):
            ps[f"layer_{layer}"][child], found = loaded(theirs, layer, suffix)
            tensors |= {f"layer_{layer}.{child}.{name}": tensor for name, tensor in found.items()}
    ps = lux.ComponentVector.from_tree(ps)
    compare(ours, ps, RNG.normal(size=(4, 5, 2)), lambda x: theirs(x)[0], tensors)


def test_stacked_cells_are_layers_of_torch():
    theirs = torch.nn.GRU(2, 3, num_layers=2, batch_first=True, dtype=torch.float64)
    (low, low_tensors), (high, high_tensors) = loaded(theirs, 0), loaded(theirs, 1)
    ps = lux.ComponentVector.from_tree({"layer_0": low, "layer_1": high})
    tensors = {f"layer_0.{name}": tensor for name, tensor in low_tensors.items()}
    tensors |= {f"layer_1.{name}": tensor for name, tensor in high_tensors.items()}
    ours = lux.Recurrence(lux.StackedCells(lux.GRUCell(2, 3), lux.GRUCell(3, 3)))
    compare(ours, ps, RNG.normal(size=(4, 5, 2)), lambda x: theirs(x)[0][:, -1], tensors)


def test_packed_sequences_are_masked_ones():
    theirs = torch.nn.LSTM(2, 3, batch_first=True, dtype=torch.float64)
    ps, _ = loaded(theirs)
    x, lengths = RNG.normal(size=(3, 5, 2)), np.array([5, 3, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), torch.tensor(lengths), batch_first=True)
    ys, (h, c) = theirs(packed)
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, batch_first=True)
    ours = lux.Recurrence(lux.LSTMCell(2, 3), return_sequence=True, return_carry=True)
    mask = np.arange(5) < lengths[:, None]
    (y, carry), _ = ours((jnp.asarray(x), None, mask), ps, {})
    for mine, other in ((y, ys), (carry[0], h[0]), (carry[1], c[0])):
        assert np.allclose(mine, other.detach(), atol=1e-5)


def dense(tensor, bias):
    return {"weight": jnp.asarray(tensor.detach().numpy().T), "bias": jnp.asarray(bias.detach().numpy())}


def attention(theirs):
    """The parameters of a torch MultiheadAttention as ours."""
    thirds = zip(theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True)
    names = zip(("query", "key", "value"), thirds, strict=True)
    return {name: dense(*pair) for name, pair in names} | {
        "output": dense(theirs.out_proj.weight, theirs.out_proj.bias)
    }


@pytest.mark.parametrize("is_causal", [False, True])
def test_multi_head_attention(is_causal):
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    torch.nn.init.normal_(theirs.in_proj_bias)
    hidden = torch.triu(torch.ones(5, 5, dtype=bool), 1) if is_causal else None
    ours = lux.MultiHeadAttention(8, 2, is_causal=is_causal)
    ps = lux.ComponentVector.from_tree(attention(theirs) | {"dropout": {}})
    compare(
        ours,
        ps,
        RNG.normal(size=(3, 5, 8)),
        lambda x: theirs(x, x, x, attn_mask=hidden)[0],
        {"output.weight": theirs.out_proj.weight, "output.bias": theirs.out_proj.bias},
    )


def test_cross_attention_with_a_padding_mask_and_weights():
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True, kdim=3, vdim=4, dtype=torch.float64)
    names = {"query": "q_proj_weight", "key": "k_proj_weight", "value": "v_proj_weight"}
    biases = theirs.in_proj_bias.chunk(3)
    ps = {name: dense(getattr(theirs, names[name]), bias) for name, bias in zip(names, biases, strict=True)}
    ps |= {"output": dense(theirs.out_proj.weight, theirs.out_proj.bias), "dropout": {}}
    q, k, v = (RNG.normal(size=(2, n, d)) for n, d in ((5, 8), (6, 3), (6, 4)))
    keep = np.arange(6) < np.array([6, 2])[:, None]
    their_y, their_weights = theirs(
        *map(torch.tensor, (q, k, v)), key_padding_mask=torch.tensor(~keep), average_attn_weights=False
    )
    ours = lux.MultiHeadAttention(8, 2, key_features=3, value_features=4, return_weights=True)
    st = lux.setup(jax.random.key(0), ours)[1]
    (y, weights), _ = ours((q, k, v, keep[:, None, None]), ps, st)
    assert np.allclose(y, their_y.detach(), atol=1e-5) and np.allclose(weights, their_weights.detach(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder(norm_first):
    theirs = torch.nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    exact_gelu = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
    ours = lux.TransformerEncoderBlock(8, 2, 12, exact_gelu, norm_first=norm_first)
    norms = {
        f"norm_{i}": {"scale": norm.weight, "bias": norm.bias} for i, norm in ((1, theirs.norm1), (2, theirs.norm2))
    }
    ps = {name: {k: jnp.asarray(v.detach().numpy()) for k, v in norm.items()} for name, norm in norms.items()}
    ps["attention"] = attention(theirs.self_attn) | {"dropout": {}}
    ps["mlp"] = {
        "layer_0": dense(theirs.linear1.weight, theirs.linear1.bias),
        "layer_1": {},
        "layer_2": dense(theirs.linear2.weight, theirs.linear2.bias),
    }
    tree = {name: ps.get(name, {}) for name in ours.children}
    weights = {"norm_1.scale": theirs.norm1.weight, "mlp.layer_0.weight": theirs.linear1.weight,
               "attention.output.weight": theirs.self_attn.out_proj.weight}  # fmt: skip
    compare(ours, lux.ComponentVector.from_tree(tree), RNG.normal(size=(3, 5, 8)), theirs, weights)
