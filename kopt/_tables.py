"""What `python -m kopt` learns from: a table of the user's, if it can be learnt from, or scikit-learn's digits."""

from dataclasses import dataclass
from typing import Any

from kopt._checks import Refusal

FOLDS = 3
"""Of the search: each value to predict needs a row in each, and one among those held out."""


@dataclass
class Data:
    """Rows to learn from, and how to prepare them."""

    name: str
    X: Any
    y: Any
    classes: bool
    prepare: Any


def digits():
    """Scikit-learn's 8x8 images of digits."""
    from sklearn.datasets import load_digits
    from sklearn.preprocessing import MinMaxScaler

    X, y = load_digits(return_X_y=True)
    return Data("digits", X.astype("float32"), y, True, MinMaxScaler())


def read_table(file, target):
    """Reads a table; refuses what cannot be learnt from."""
    try:
        import pandas as pd
    except ModuleNotFoundError:
        raise Refusal("--csv needs pandas. Install kopt[csv].") from None
    try:
        table = pd.read_csv(file)
    except FileNotFoundError:
        raise Refusal(f"--csv names a file that does not exist: {file}.") from None
    except (OSError, ValueError) as error:
        raise Refusal(f"--csv names a file that is no table: {file} ({str(error).strip()}).") from None
    if target not in table:
        raise Refusal(f"--target must be a column of {file}, got {target!r}; it has {', '.join(map(str, table))}.")
    table = table.dropna(subset=[target])
    y, X = table[target], table.drop(columns=target)
    X = X.astype({name: object for name in X.select_dtypes(exclude="number")})
    numeric = pd.api.types.is_numeric_dtype(y) and not pd.api.types.is_bool_dtype(y)
    distinct = y.nunique()
    whole = numeric and (y == y.round()).all()
    classes = not numeric or (whole and distinct <= 20)
    if X.shape[1] == 0:
        raise Refusal(f"--csv must have columns besides {target!r} to predict it from, and {file} has none.")
    if distinct < 2:
        raise Refusal(f"--target must be a column with at least two values, and {target!r} has {distinct}.")
    if classes and distinct > len(y) / 2:
        raise Refusal(f"--target must be a column whose values recur or are numbers, and {target!r} has {distinct} "
                       f"values in {len(y)} rows.")  # fmt: skip
    fewest = y.value_counts().min() if classes else len(y) // 10
    if fewest <= FOLDS:
        rule = f"{FOLDS + 1} rows for each value of {target!r}" if classes else f"{10 * (FOLDS + 1)} rows"
        raise Refusal(f"--csv must have at least {rule}, and {file} has {fewest if classes else len(y)}.")
    return Data(file.stem, X, y, classes, _preparation(X))


def _preparation(X):
    """Scaled numbers and one-hot categories; gaps filled with the median and the most frequent."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    one_hot = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=20, sparse_output=False)
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    categories = make_pipeline(SimpleImputer(strategy="most_frequent"), one_hot)
    return make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (categories, make_column_selector(dtype_exclude="number")),
    )
