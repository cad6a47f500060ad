"""L-BFGS on all rows at once, and on large batches, beside AdamW on all rows and on small batches.

python examples/large_batch_lbfgs.py --rows 4096 --passes 100

The picture has the loss over the passes that were made over the rows: evaluations of the gradient, each times its
share of the rows. With all rows in one batch L-BFGS is far ahead; where small batches can be had, AdamW makes more of
the first passes.
"""

import argparse

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import kopt

parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=4096)
parser.add_argument("--passes", type=int, default=100)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

rng = np.random.default_rng(arguments.seed)
x = rng.uniform(-1, 1, size=(arguments.rows, 4)).astype("float32")
y = np.exp(x[:, :1]) * np.sin(3 * x[:, 1:2]) + x[:, 2:3] * x[:, 3:]


def curve(optimizer, batch):
    """Passes over the rows, and the loss that was seen in the last of them."""
    keras.utils.set_random_seed(arguments.seed)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(24, "tanh")(keras.layers.Dense(24, "tanh")(inputs))
    model = kopt.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(optimizer, "mse", jit_compile=False)
    passes, losses = [], []

    def keep(epoch, logs):
        looks = getattr(optimizer, "evaluations", optimizer.iterations.numpy())
        passes.append(looks * batch / arguments.rows)
        losses.append(logs["loss"])
        model.stop_training = passes[-1] >= arguments.passes

    keep = keras.callbacks.LambdaCallback(on_epoch_end=keep)
    model.fit(x, y, batch_size=batch, epochs=arguments.passes, verbose=0, callbacks=[keep])
    return passes, losses


large = arguments.rows // 4
runs = {
    "L-BFGS, all rows": (kopt.LBFGS(), arguments.rows),
    f"L-BFGS, {large} rows": (kopt.LBFGS(stochastic=True, damping=0.2), large),
    "AdamW, all rows": (kopt.AdamW(0.01), arguments.rows),
    "AdamW, 128 rows": (kopt.AdamW(3e-3), 128),
}
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for name, (optimizer, batch) in runs.items():
    passes, losses = curve(optimizer, batch)
    print(f"{name}: loss {losses[-1]:.1e} after {passes[-1]:.0f} passes over the rows")
    axis.semilogy(passes, losses, label=name)
axis.set(xlabel="passes over the rows", ylabel="loss", xlim=(0, arguments.passes))
axis.legend()
figure.savefig("large_batch_lbfgs.png", dpi=120)
