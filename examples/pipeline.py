"""A residual network in four stages: cut by hand and by measured time, and the same weights as on one device.

python examples/pipeline.py --depth 12 --epochs 3

Here the stages are logical devices of one CPU, where nothing gets faster. With four GPUs, leave `devices` and the first
lines of `main` out.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=8)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--micro-batches", type=int, default=4)
arguments = parser.parse_args()


def network(depth):
    """Blocks of a norm, an expansion and a projection, each around a skip."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = keras.layers.Dense(64, name="first")(inputs)
    for number in range(depth):
        branch = keras.layers.LayerNormalization()(h)
        branch = keras.layers.Dense(128, "gelu")(branch)
        branch = keras.layers.Dense(64)(branch)
        h = keras.layers.Add(name=f"block{number}")([h, branch])
    return inputs, keras.layers.Dense(10, name="last")(h)


def fit(model, X, y):
    """The model's weights and its accuracy after some epochs."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kopt.AdamW(1e-3, global_clipnorm=1.0), loss, metrics=["accuracy"])
    keras.utils.set_random_seed(1)
    history = model.fit(X, y, batch_size=100, epochs=arguments.epochs, verbose=0).history
    return model.get_weights(), history["accuracy"][-1]


def main():
    logical = tf.config.list_logical_devices("CPU")
    devices = [logical[number % len(logical)].name for number in range(4)]
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    depth = arguments.depth
    by_hand = [f"block{depth * number // 4 - 1}" for number in (1, 2, 3)]
    weights, accuracy = fit(kopt.Model(*network(depth)), X, y)
    print(f"one device: accuracy {accuracy:.3f}")
    for stages in (by_hand, 4):
        how = dict(stages=stages, micro_batches=arguments.micro_batches, devices=devices)
        model = kopt.PipelineModel(*network(depth), **how)
        others, accuracy = fit(model, X, y)
        off = max(np.abs(a - b).max() for a, b in zip(weights, others, strict=True))
        ends = ", ".join(names[-1] for names in model.stages)
        print(f"stages that end with {ends}: accuracy {accuracy:.3f}, weights off by {off:.0e}")


if __name__ == "__main__":
    main()
