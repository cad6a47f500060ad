import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

import kopt
from kopt import KerasClassifier, KerasRegressor

X, y = make_classification(60, 6, n_informative=4, random_state=0)


def build(n_features_in_, n_outputs_, units=8, depth=1):
    layers = [keras.layers.Dense(units, "relu") for _ in range(depth)]
    return keras.Sequential([keras.Input((n_features_in_,)), *layers, keras.layers.Dense(n_outputs_)])


def test_construction_and_mistakes_import_no_framework():
    code = """
import sys, pickle, sklearn.base
from sklearn.utils._param_validation import InvalidParameterError
from kopt.estimators import KerasClassifier, KerasRegressor
net = sklearn.base.clone(KerasClassifier(optimizer="adam", optimizer__beta_1=0.5))
repr(net), net.get_params(), pickle.dumps(net), net._repr_html_(), net.set_params(optimizer__beta_1=0.4, epochs=3)
def build(units): pass
for wrong in (dict(epochs=0), dict(model__dropout=-1), dict(model=build, model__unit=3), dict(model__hidden_sizes=3)):
    try:
        KerasRegressor(**wrong).fit([[1.0]], [1.0])
    except InvalidParameterError:
        print(wrong)
print(sorted({"tensorflow", "keras"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[
        4:
    ] == ["[]"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": -5}, {"batch_size": "all"}, {"validation_fraction": 7}, {"n_iter_no_change": 0},
        {"strategy": "mirored"}, {"dtype": "float8"}, {"device": 0},
        {"class_weight": "balance"}, {"loss": 3}, {"model": "mlp"}, {"warm_start": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(InvalidParameterError, match=f"The {name!r} parameter of KerasClassifier must be"):
        KerasClassifier(**wrong).fit(X, y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": build, "model__unitz": 3}, "model__unitz is no parameter of build; it takes units, depth."),
        ({"model__width": 3}, "model__width is no parameter of mlp; it takes hidden_layer_sizes, activation, "),
        ({"model": lambda width: 0}, "model must get all it needs, and <lambda> needs width. Pass model__width."),
        ({"model": lambda: "net"}, "model must return a keras.Model, got 'net'."),
        ({"model": lambda: build(6, 3)}, "model must end in n_outputs_ = 1 units, got 3 units."),
        (
            {"model": lambda: keras.Sequential([keras.layers.Reshape((3, 2))])},
            "model must have outputs of shape (rows, units)",
        ),
        ({"optimizer": "adma"}, "optimizer must be one of "),
        ({"optimizer": "cautious"}, "optimizer must be one of "),
        ({"optimizer__betta": 1}, "optimizer__betta is no parameter of Adam; it takes learning_rate, "),
        ({"optimizer": keras.optimizers.SGD(), "optimizer__beta_1": 1}, "optimizer__beta_1 is no parameter of SGD;"),
        ({"loss": "croscentropy"}, "loss must be the name of a loss in keras.losses, got 'croscentropy'."),
    ],
)
def test_mistakes_raise_before_training(parameters, message, monkeypatch):
    monkeypatch.setattr("kopt.training.network.Network.train", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises((TypeError, ValueError), match="KerasClassifier: " + re.escape(message)):
        KerasClassifier(**parameters).fit(X, y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": build, "model__unitz": 3}, "units, depth. Did you mean 'units'?"),
        ({"model__hidden_layer_size": 3}, "Did you mean 'hidden_layer_sizes'?"),
        ({"model__hidden_layer_sizes": (8, 0)}, "model__hidden_layer_sizes must hold integers from 1, got (8, 0)."),
        ({"model__hidden_layer_sizes": 0}, "The 'model__hidden_layer_sizes' parameter of KerasClassifier must be"),
        ({"model__dropout": 1.5}, "The 'model__dropout' parameter of KerasClassifier must be a float in the range"),
        ({"model__drop_path": 1.0}, "The 'model__drop_path' parameter of KerasClassifier must be a float in the"),
        ({"model__activation": "rellu"}, "Did you mean 'relu'?"),
        ({"model": lambda meta: 0}, "needs meta. In kopt facts about the data come by name"),
        ({"model": lambda compile_kwargs: 0}, "needs compile_kwargs. In kopt the network is not compiled by"),
        ({"optimizer": "adm"}, "Did you mean 'Adam'?"),
        ({"optimizer": 3}, "The 'optimizer' parameter of KerasClassifier must be"),
        ({"optimizer__learning_rat": 1}, "Did you mean 'learning_rate'?"),
        ({"optimizer__learning_rate": -1.0}, "Adam: learning_rate must be a number in [0, inf), got -1.0."),
        ({"optimizer__beta_2": "0.9"}, "Adam: beta_2 must be a number in [0, 1), got '0.9'."),
        ({"optimizer": "SOAP", "optimizer__frequency": 0}, "SOAP: frequency must be an integer in [1, inf), got 0."),
        ({"optimizer": keras.optimizers.Adam, "optimizer__beta_1": 2.0}, "Adam: beta_1 must be a number in [0, 1)"),
        ({"optimizer": kopt.Cautious(kopt.Adam()), "optimizer__inner__bta_1": 1}, "Did you mean 'inner__beta_1'?"),
        ({"loss": "croscentropy"}, "must be the name of a loss in keras.losses, got 'croscentropy'. Did you mean"),
        ({"device": "CPU", "strategy": "mirrored"}, "device must be None where a strategy chooses the devices"),
    ],
)
def test_wrong_parameters_raise_before_anything_is_made(parameters, message, monkeypatch):
    monkeypatch.setattr(kopt.Optimizer, "__init__", lambda *_, **__: pytest.fail("it makes an optimizer"))
    monkeypatch.setattr(keras.layers.Layer, "__init__", lambda *_, **__: pytest.fail("it makes a layer"))
    with pytest.raises(InvalidParameterError, match=re.escape(message)):
        KerasClassifier(**parameters).fit("no rows", None)


def test_template_takes_no_parameters():
    with pytest.raises(ValueError, match="no parameter of a model that is built already; it takes none"):
        KerasClassifier(build(6, 1), model__units=3).fit(X, y)


def test_unknown_names_are_type_errors():
    with pytest.raises(TypeError, match="KerasClassifier: modle__units is no parameter; it takes batch_size, "):
        KerasClassifier(modle__units=3)
    with pytest.raises(InvalidParameterError, match=r"epoch is no parameter; .* Did you mean 'epochs'\?"):
        KerasClassifier().set_params(epoch=3)
    with pytest.raises(InvalidParameterError, match="strategy__scope is no parameter"):
        KerasClassifier().set_params(strategy__scope=3)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("modle__units", "Did you mean 'model__units'?"),
        ("optimiser__momentum", "Did you mean 'optimizer__momentum'?"),
        ("epoch", "Did you mean 'epochs'?"),
        ("build_fn", "Use model."),
        ("metrics", "Use scoring, with scikit-learn's scorers."),
        ("validation_split", "Use early_stopping=True or scoring, with validation_fraction."),
        ("fit__batch_size", "Use batch_size."),
        ("loss__from_logits", "Use a keras.losses.Loss, as in"),
        ("hidden_layer_sizes", "Use model__hidden_layer_sizes."),
        ("learning_rate_init", "Use optimizer__learning_rate."),
        ("max_epochs", "Use epochs."),
        ("module__units", "Use model__*."),
    ],
)
def test_what_others_call_a_parameter_is_understood(name, word):
    with pytest.raises(InvalidParameterError, match=re.escape(f"KerasRegressor: {name} is no parameter; ")) as error:
        KerasRegressor(**{name: 1})
    assert word in str(error.value)
    if "__" not in word and word.startswith("Use ") and word[4:-1].isidentifier():
        assert word[4:-1] in KerasRegressor().get_params()


def test_parameters_are_kept_as_given():
    optimizer, sizes = kopt.Lion(), [3, 4]
    net = KerasClassifier(build, optimizer=optimizer, model__units=sizes, optimizer__beta_1=0.5)
    assert net.optimizer is optimizer
    assert net.get_params()["model__units"] is sizes
    assert net.get_params(deep=False)["optimizer__beta_1"] == 0.5
    assert net.get_params()["optimizer__beta_2"] == 0.99
    assert "model__units" in repr(net)
    copy = clone(net).set_params(model__units=5, model__depth=2)
    assert (copy.model__units, copy.model__depth, net.model__units) == (5, 2, sizes)
    assert "model__depth" not in net.get_params()


@pytest.mark.parametrize("optimizer", [None, "Adam", "adam", kopt.Adam, kopt.Adam()], ids=repr)
def test_an_optimizer_is_a_name_a_class_or_an_instance(optimizer):
    net = KerasClassifier(optimizer=optimizer, optimizer__beta_1=0.5, epochs=2, random_state=0).fit(X, y)
    same = KerasClassifier(optimizer=kopt.Adam(beta_1=0.5), epochs=2, random_state=0).fit(X, y)
    other = KerasClassifier(optimizer=kopt.Adam(), epochs=2, random_state=0).fit(X, y)
    np.testing.assert_array_equal(net.predict_proba(X), same.predict_proba(X))
    assert (net.predict_proba(X) != other.predict_proba(X)).any()


def test_a_name_is_that_of_kopts_own_optimizer():
    named = KerasClassifier(optimizer="adafactor", epochs=2, random_state=0).fit(X, y)
    given = KerasClassifier(optimizer=kopt.Adafactor(), epochs=2, random_state=0).fit(X, y)
    np.testing.assert_array_equal(named.predict_proba(X), given.predict_proba(X))


@pytest.mark.parametrize("optimizer", [kopt.SGD(0.1, momentum=0.9), keras.optimizers.SGD(0.1, momentum=0.9)])
def test_an_instance_is_never_changed(optimizer):
    before = optimizer.get_config()
    KerasClassifier(optimizer=optimizer, optimizer__momentum=0.5, epochs=1).fit(X, y)
    assert optimizer.get_config() == before
    assert not optimizer.built


def test_grid_search_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), KerasClassifier(build, epochs=20, random_state=0))
    grid = {
        "kerasclassifier__model__units": [16],
        "kerasclassifier__optimizer": ["sgd", kopt.Adam()],
        "kerasclassifier__optimizer__learning_rate": [0.0, 0.05],
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_["kerasclassifier__optimizer__learning_rate"] == 0.05
    assert search.best_score_ > 0.8


def test_a_function_gets_the_facts_it_names():
    got = {}

    def facts(n_classes_, target_type_, n_features_in_, n_outputs_):
        got.update(locals())
        return build(n_features_in_, n_outputs_)

    KerasClassifier(facts, epochs=1).fit(X, np.arange(60) % 3)
    assert {k: v for k, v in got.items() if k != "got"} == {
        "n_classes_": 3, "target_type_": "multiclass", "n_features_in_": 6, "n_outputs_": 3,
    }  # fmt: skip


def test_a_template_is_where_each_fit_starts_from():
    template = build(6, 1)
    before = template.get_weights()
    still = KerasClassifier(template, optimizer__learning_rate=0.0, epochs=1).fit(X, y)
    for given, kept in zip(before, still.model_.get_weights(), strict=True):
        np.testing.assert_array_equal(given, kept)
    moved = KerasClassifier(template, epochs=1).fit(X, y)
    assert (moved.model_.get_weights()[0] != before[0]).any()
    for given, kept in zip(before, template.get_weights(), strict=True):
        np.testing.assert_array_equal(given, kept)


def test_the_default_network_skips_over_equal_layers():
    sizes = (8, 8, 4)
    net = KerasRegressor(model__hidden_layer_sizes=sizes, model__dropout=0.1, model__drop_path=0.2, epochs=1).fit(X, y)
    kinds = [type(layer).__name__ for layer in net.model_.layers]
    assert (kinds.count("Add"), kinds.count("DropPath"), kinds.count("Dropout"), kinds.count("Dense")) == (1, 1, 3, 4)
    assert net.model_.layers[-1].activation is keras.activations.linear


def test_another_backend_is_refused_before_anything_else(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    message = r"^KerasRegressor: KERAS_BACKEND must be 'tensorflow', on which it trains, got 'jax'\.$"
    with pytest.raises(RuntimeError, match=message):
        kopt.KerasRegressor().fit([[0.0], [1.0]], [0.0, 1.0])
