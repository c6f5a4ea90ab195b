"""PyTorch's nets with the weights of Equinox's."""

import numpy as np
import torch


def sequential(layers, *activations):
    """Linear layers, each followed by its activation, from those of Equinox."""
    modules = []
    for linear, activation in zip(layers, activations, strict=True):
        module = torch.nn.Linear(linear.in_features, linear.out_features)
        module.weight.data = torch.tensor(np.array(linear.weight))
        module.bias.data = torch.tensor(np.array(linear.bias))
        modules += [module, activation]
    return torch.nn.Sequential(*modules)
