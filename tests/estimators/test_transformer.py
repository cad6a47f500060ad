import pickle

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import kopt
from kopt import KerasTransformer

X, y = make_classification(90, 6, n_informative=4, n_classes=3, random_state=0)
layers = keras.layers


def fast(model=None, **parameters):
    given = {"optimizer": kopt.Adam(0.03), "epochs": 3, "batch_size": 30, "random_state": 0}
    return KerasTransformer(model, **given | parameters)


@pytest.fixture(scope="module")
def net():
    return fast(model__hidden_layer_sizes=(16, 2, 16), model__activation="tanh", layer="hidden_2", epochs=80).fit(X)


def test_a_code_gives_rows_back(net):
    code = net.transform(X)
    linear = X - X.mean(axis=0)
    left = np.linalg.svd(linear, compute_uv=False)[2:]  # what the best two directions leave of X
    assert (net.task_, code.shape, net.n_outputs_) == ("reconstruction", (90, 2), 6)
    assert net.loss_curve_[-1] < 1.3 * (left**2).sum() / X.size
    np.testing.assert_allclose(
        code, keras.Model(net.model_.input, net.model_.get_layer("hidden_2").output)(X), rtol=1e-6
    )


def test_names_and_frames(net, tmp_path):
    names = ["kerastransformer0", "kerastransformer1"]
    assert net.get_feature_names_out().tolist() == names
    net.save(tmp_path / "code.kopt")
    for again in (pickle.loads(pickle.dumps(net)), kopt.load(tmp_path / "code.kopt")):
        table = again.set_output(transform="pandas").transform(X)
        assert list(table.columns) == names
        np.testing.assert_array_equal(table, net.transform(X))


def test_layers_by_name_and_number():
    def of(layer):
        transformer = fast(model__hidden_layer_sizes=(5, 4), model__dropout=0.1, layer=layer).fit(X, y)
        return transformer.transform(X), [each.name for each in transformer.model_.layers]

    (last, names), (first, _), (second, _), (logits, _) = of(None), of("hidden_1"), of(-3), of(-1)
    assert names[-3:] == ["hidden_2", names[-2], "output"]
    assert [a.shape[1] for a in (last, first, second, logits)] == [4, 5, 4, 3]
    np.testing.assert_array_equal(last, second)  # dropout between them does nothing here
    for wrong in ("hidden_3", 9):
        with pytest.raises(ValueError, match=r"KerasTransformer: layer must be None, a number below 6, or one of \['"):
            of(wrong)


@pytest.mark.parametrize(
    ("y", "task", "given"),
    [
        (y, "classification", "auto"),
        (np.array(["a", "b", "c"])[y], "classification", "auto"),
        (X[:, 0] - X[:, 1], "regression", "auto"),
        (X[:, :2], "regression", "auto"),
        (y, "regression", "regression"),
        (np.column_stack([y, y]), "classification", "auto"),
    ],
)
def test_targets_tell_the_task(y, task, given):
    transformer = fast(task=given).fit(X, y)
    assert transformer.task_ == task
    assert transformer.transform(X).shape == (90, 100)


def test_trained_features_are_better_than_the_rows():
    corner = (X[:, 0] > 0) != (X[:, 1] > 0)
    plain = LogisticRegression().fit(X, corner).score(X, corner)
    transformer = fast(epochs=60, model__hidden_layer_sizes=(16,))
    assert make_pipeline(transformer, LogisticRegression()).fit(X, corner).score(X, corner) > plain + 0.1
    from_rows = make_pipeline(clone(transformer), LogisticRegression())
    assert from_rows.fit(pd.DataFrame(X), corner).score(X, corner) > plain


def test_a_trained_model_is_taken_as_it_is():
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Dense(4, name="inner")(inputs))))
    rows = X.reshape(90, 3, 2).astype("float32")
    transformer = fast(model, layer="inner", epochs=0).fit(rows, y)
    assert (transformer.n_iter_, transformer.loss_curve_, transformer.best_loss_) == (0, [], None)
    np.testing.assert_allclose(
        transformer.transform(rows), model.get_layer("inner")(rows).numpy().reshape(90, 12), rtol=1e-5
    )


def test_images_are_given_back():
    def folded(input_shape_, n_outputs_):
        return keras.Sequential(
            [keras.Input(input_shape_), layers.Flatten(), layers.Dense(2), layers.Dense(n_outputs_)]
        )

    images = X.reshape(90, 3, 2)
    transformer = fast(folded).fit(images)
    flat = fast(lambda n_features_in_: keras.Sequential([keras.Input((6,)), layers.Dense(2), layers.Dense(6)])).fit(X)
    assert transformer.loss_curve_ == flat.loss_curve_


def test_sparse_rows_are_given_back():
    rows = np.where(np.abs(X) > 1, X, 0)
    dense, sparse = (fast(early_stopping=True).fit(a) for a in (rows, sp.csr_matrix(rows)))
    assert dense.history_ == sparse.history_
    np.testing.assert_array_equal(dense.transform(rows), sparse.transform(sp.csr_matrix(rows)))


def test_going_on():
    steps = fast()
    for _ in range(3):
        steps.partial_fit(X)
    np.testing.assert_array_equal(steps.transform(X), fast().fit(X).transform(X))
    with pytest.raises(ValueError, match="KerasTransformer: y must be as before, for reconstruction, got"):
        steps.partial_fit(X, y)
    known = fast().partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2]).partial_fit(X, y)
    assert known.n_classes_ == 3


def test_a_subclassed_model_hides_its_layers():
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    with pytest.raises(ValueError, match="KerasTransformer: model must be functional or sequential, got <Hidden"):
        fast(Hidden).fit(X, y)
