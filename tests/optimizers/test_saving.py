"""Models with kopt's parts load wherever kopt is imported, whichever comes first, Keras or kopt."""

import subprocess
import sys

import keras
import pytest

import kopt


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), kopt.layers.DropPath(0.1)])
    model.compile(kopt.Lion(0.25), "mse")
    model.save(file := tmp_path_factory.mktemp("models") / "model.keras")
    return file


@pytest.mark.parametrize("order", ["import kopt, keras", "import keras, kopt"])
def test_a_saved_model_loads_after_import_kopt(saved, order):
    script = f"{order}\nmodel = keras.saving.load_model({str(saved)!r})\nprint(model.optimizer, model.layers[-1].rate)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["Lion(learning_rate=0.25)", "0.1"]
