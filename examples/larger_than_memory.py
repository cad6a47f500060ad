"""Trains on a memory map that need not fit into memory: blocks of it go to the device, in an order over all rows.

python examples/larger_than_memory.py --rows 4000000    # 4 GB
"""

import argparse
import pathlib
import tempfile

import keras
import numpy as np

import kopt

FEATURES = 256


def written(folder, rows):
    """Rows and targets on the disk, made and written some at a time: y is a smooth function of x, and noise."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(FEATURES, 2)).astype("float32") / FEATURES**0.5
    x = np.memmap(folder / "x.dat", "float32", "w+", shape=(rows, FEATURES))
    y = np.memmap(folder / "y.dat", "float32", "w+", shape=(rows,))
    for start in range(0, rows, 10_000):
        some = rng.normal(size=(min(10_000, rows - start), FEATURES)).astype("float32")
        x[start : start + 10_000] = some
        y[start : start + 10_000] = np.tanh(some @ weights).sum(axis=1) + 0.1 * rng.normal(size=len(some))
    return x, y


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        x, y = written(pathlib.Path(folder), arguments.rows)
        print(f"{x.nbytes / 2**20:.0f} MiB on the disk; training holds about 256 MiB of them")
        inputs = keras.Input((FEATURES,))
        model = kopt.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(64, "tanh")(inputs)))
        model.compile(kopt.AdamW(1e-3), "mse")
        model.fit(x, y, batch_size=512, epochs=arguments.epochs, validation_split=0.1, verbose=2)
        errors = model.predict(x, batch_size=512, verbose=0)[:, 0] - y
        print(f"mean square of errors: {np.mean(errors**2):.4f}, of which 0.01 is noise")


if __name__ == "__main__":
    main()
