"""A pipeline on columns of mixed types from a CSV file, numbers and names with gaps; without a file it makes one up.

python examples/mixed_columns.py
python examples/mixed_columns.py --csv flats.csv --target price
"""

import argparse
import pathlib

import numpy as np
import pandas as pd
from sklearn.compose import TransformedTargetRegressor, make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import kopt


def made_up(path, rows=4000, seed=0):
    """Writes a file of flats: their price follows a rule, times noise of a tenth."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "area": rng.gamma(9, 8, rows).round(),
            "rooms": rng.integers(1, 6, rows),
            "floor": rng.integers(0, 12, rows),
            "lift": rng.choice(["yes", "no"], rows),
            "district": rng.choice(["harbour", "old town", "hill", "station"], rows, p=[0.2, 0.2, 0.25, 0.35]),
            "built": rng.integers(1890, 2024, rows),
        }
    )
    place = table.district.map({"harbour": 5.0, "old town": 6.5, "hill": 4.5, "station": 3.5})
    stairs = np.where(table.lift == "no", 0.97**table.floor, 1.01**table.floor)
    age = 1 + 0.3 * np.cos((table.built - 1890) / 134 * 2 * np.pi)  # old and new ones are dear
    table["price"] = (table.area * place * stairs * age * rng.lognormal(0, 0.1, rows)).round(1)
    for column in ("area", "built", "district"):
        table.loc[rng.random(rows) < 0.05, column] = None
    table.to_csv(path, index=False)


def columns():
    """What makes a row of numbers of each row."""
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    names = OneHotEncoder(handle_unknown="ignore")
    return make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (names, make_column_selector(dtype_exclude="number")),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--target", default="price")
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.csv is None:
        arguments.csv = pathlib.Path("flats.csv")
        made_up(arguments.csv)
    table = pd.read_csv(arguments.csv).dropna(subset=arguments.target)
    X, y = table.drop(columns=arguments.target), table[arguments.target]
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0)

    network = kopt.KerasRegressor(
        optimizer="AdamW",
        optimizer__learning_rate=3e-3,
        model__hidden_layer_sizes=(64, 64),
        epochs=arguments.epochs,
        early_stopping=True,
        n_iter_no_change=8,
        random_state=0,
    )
    regressors = {"ridge": Ridge(), "boosted trees": HistGradientBoostingRegressor(), "network": network}
    for name, regressor in regressors.items():
        scaled = TransformedTargetRegressor(regressor, transformer=StandardScaler())
        pipeline = make_pipeline(columns(), scaled).fit(X_train, y_train)
        print(f"{name:>13}: R² on test rows {pipeline.score(X_test, y_test):.3f}")
    print(f"the network stopped after {pipeline[-1].regressor_.n_iter_} epochs")


if __name__ == "__main__":
    main()
