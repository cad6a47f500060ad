"""A network of one's own: residual blocks with stochastic depth, and AdamW whose learning rate is a schedule.

python examples/residual_network.py
"""

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kopt


def residual(n_features_in_, n_outputs_, *, width=64, depth=3, drop_path=0.1):
    """Blocks of norm, expansion and projection around a skip; deeper blocks are left out more often."""
    inputs = keras.Input((n_features_in_,))
    h = keras.layers.Dense(width)(inputs)
    for number in range(1, depth + 1):
        branch = keras.layers.LayerNormalization()(h)
        branch = keras.layers.Dense(2 * width, activation="gelu")(branch)
        branch = keras.layers.Dense(width)(branch)
        h = h + kopt.layers.DropPath(drop_path * number / depth)(branch)
    return keras.Model(inputs, keras.layers.Dense(n_outputs_)(h))


def main():
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 300, warmup_target=5e-3, warmup_steps=50)
    network = kopt.KerasClassifier(
        residual,
        optimizer=kopt.AdamW(schedule, weight_decay=0.05, no_decay=("bias", "gamma", "beta")),
        epochs=8,
        random_state=0,
    )
    pipeline = make_pipeline(StandardScaler(), network).fit(X_train, y_train)
    print(f"held-out accuracy: {pipeline.score(X_test, y_test):.3f}")


if __name__ == "__main__":
    main()
