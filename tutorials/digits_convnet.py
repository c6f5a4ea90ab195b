"""Handwritten digits read by a small convolutional net with BatchNorm and Dropout, trained by `lux.fit`.

The data, the split, the objective and the run are those of digits_node.py: only the model is another one, and it has a
state, which is carried, saved and resumed with the rest. Needs `pip install lux-sciml[tutorials]`.
"""

import jax
from digits_node import tell

import lux_sciml as lux

EPOCHS = 30


def block(inputs, outputs):
    conv = lux.Conv(inputs, outputs, (3, 3), padding="SAME", use_bias=False)
    return lux.Chain(conv, lux.BatchNorm(outputs), jax.nn.relu)


def build():
    """Three convolutions, the images halved after the second, and a dense layer of what is left."""
    pool = lux.MaxPool((2, 2))
    features = lux.Chain(block(1, 16), block(16, 32), pool, block(32, 32), pool)
    return lux.Chain(features=features, flatten=lux.Flatten(), dropout=lux.Dropout(0.3), head=lux.Dense(128, 10))


if __name__ == "__main__":
    tell("digits_convnet", build, EPOCHS, 4e-3)
