"""Estimators in files: they come back whole, and a file from a stranger runs nothing."""

import json
import pathlib
import warnings
import zipfile

import keras
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError

import kopt
from kopt import KerasClassifier, KerasRegressor
from kopt.estimators.display import drawn
from kopt.estimators.documents import Writer, checked

X, y = load_iris(return_X_y=True)
X = X.astype("float32")
layers = keras.layers
FAST = dict(epochs=1, batch_size=32, random_state=0)


def build(n_features_in_, n_outputs_, units=4):
    return keras.Sequential([keras.Input((n_features_in_,)), layers.Dense(units, "relu"), layers.Dense(n_outputs_)])


def squared(y, p):
    return keras.ops.mean(keras.ops.square(y - p), -1)


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def template():
    inputs = keras.Input((4,))
    normal = layers.Normalization()
    normal.adapt(X)
    h = keras.ops.relu(layers.Dense(5, kernel_regularizer="l2")(Doubled()(normal(inputs))))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(layers.BatchNormalization()(h)))
    model.compile("adam", "mse")
    return model


@pytest.mark.parametrize(
    ("estimator", "labels", "code"),
    [
        (KerasClassifier(model__dropout=0.1, early_stopping=True), np.array(["a", "b", "c"], object)[y], {}),
        (KerasClassifier(class_weight={0: 2.0, 1: 1.0}, dtype="bfloat16", device="CPU"), y > 0, {}),
        (KerasClassifier(template(), optimizer=kopt.Cautious(kopt.AdamW(1e-2, weight_decay=0.1))), y, {}),
        (KerasRegressor(optimizer=keras.optimizers.SGD, loss=keras.losses.Huber(delta=2.0)), X[:, :2], {}),
        (KerasRegressor(optimizer="Muon", loss="mae"), X[:, 0], {}),
        (KerasRegressor(build, model__units=3, loss=squared), X[:, 0], {"model": build, "loss": squared}),
    ],
    ids=["words", "policy", "template", "keras", "names", "code"],
)
def test_they_come_back_whole(estimator, labels, code, tmp_path):
    estimator = clone(estimator).set_params(**FAST).fit(X, labels)
    estimator.save(tmp_path / "net.kopt")
    again = kopt.load(tmp_path / "net.kopt", **code)
    outputs = "predict_proba" if isinstance(estimator, KerasClassifier) else "predict"
    assert (
        repr(again.get_params(deep=False)).split(" at 0x")[0] == repr(estimator.get_params(deep=False)).split(" at ")[0]
    )
    assert vars(again).keys() == vars(estimator).keys()
    assert again.history_ == estimator.history_
    np.testing.assert_array_equal(again.predict(X), estimator.predict(X))
    np.testing.assert_array_equal(getattr(again, outputs)(X), getattr(estimator, outputs)(X))
    if not estimator.early_stopping:  # the optimizer's state and the order of rows come back, too
        again, estimator = again.partial_fit(X, labels), estimator.partial_fit(X, labels)
    np.testing.assert_array_equal(getattr(again, outputs)(X), getattr(estimator, outputs)(X))
    np.testing.assert_array_equal(getattr(clone(again).fit(X, labels), outputs)(X),
                                  getattr(clone(estimator).fit(X, labels), outputs)(X))  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    return KerasClassifier(model__hidden_layer_sizes=(6, 6), **FAST).fit(X, y)


def test_before_a_fit_there_are_parameters(tmp_path):
    KerasRegressor(epochs=3, model__dropout=0.5, random_state=np.random.RandomState(3)).save(tmp_path / "net.kopt")
    again = kopt.load(tmp_path / "net.kopt")
    assert (again.epochs, again.model__dropout, again.random_state.randint(99)) == (3, 0.5, 24)
    assert not again.__sklearn_is_fitted__()


def test_code_has_to_be_given(tmp_path):
    path = tmp_path / "net.kopt"
    KerasRegressor(build, **FAST).fit(X, y).save(path)
    with pytest.raises(ValueError, match=r"kopt.load: '.*net.kopt' must be .*: model must be given exactly where"):
        kopt.load(path)
    with pytest.raises(ValueError, match="loss must be given exactly where the parameter is code"):
        kopt.load(path, model=build, loss=squared)


def test_what_cannot_be_written_is_said(tmp_path):
    class Mine(KerasRegressor):
        pass

    with pytest.raises(TypeError, match=r"Mine: save must be given an estimator of kopt's own classes"):
        Mine().save(tmp_path / "net.kopt")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_older_file(fitted, tmp_path, monkeypatch):
    path = tmp_path / "net.kopt"
    fitted.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        fitted.save(path)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])


# ---- strangers -------------------------------------------------------------------------------------------------------


def tampered(path, change, compression=zipfile.ZIP_STORED):
    """The file with its document changed."""
    with zipfile.ZipFile(path) as old:
        document = json.loads(old.read("estimator.json"))
        rest = {entry: old.read(entry) for entry in old.namelist() if entry != "estimator.json"}
    change(document)
    with zipfile.ZipFile(path, "w", compression) as new:
        new.writestr("estimator.json", json.dumps(document))
        for entry, held in rest.items():
            new.writestr(entry, held)
    return path


@pytest.fixture
def file(fitted, tmp_path):
    fitted.save(tmp_path / "net.kopt")
    return tmp_path / "net.kopt"


def config(module, name, held=None, registered=None):
    return {"module": module, "class_name": name, "config": held or {}, "registered_name": registered}


def attack(tmp_path):
    """Configurations each of which would touch a file if anything in it was called, read or imported."""
    mark = str(tmp_path / "mark")
    with warnings.catch_warnings(action="ignore"):
        touch = keras.saving.serialize_keras_object(layers.Lambda(lambda x: pathlib.Path(mark).touch() or x))
    inside = config("keras", "Sequential", {"name": "s", "layers": [config("keras.layers", "InputLayer", {}), touch]})
    return [
        touch,
        inside,
        config("os", "system", f"touch {mark}"),
        config("builtins", "function", "exec", "exec"),
        config("builtins", "eval", f"open({mark!r}, 'w')"),
        config("keras.config", "function", "enable_unsafe_deserialization", "enable_unsafe_deserialization"),
        config("keras.saving", "load_model", {"filepath": mark}),
        config("keras.utils", "get_file", {"fname": mark, "origin": f"file://{__file__}"}),
        config("keras.layers", "TFSMLayer", {"filepath": mark}),
        config("keras.layers", "StringLookup", {"vocabulary": __file__}),
        config("keras.src.utils.io_utils", "print_msg", {}),
        config("kopt.estimators.files", "load", {}),
        config(None, "__lambda__", {"value": "4wAA"}),
        config(None, "__typespec__", {"spec_name": "TensorSpec", "module": "tensorflow"}),
        config("subprocess", "Popen", {"args": ["touch", mark]}, "Popen"),
    ]


def test_strange_names_are_refused(file, tmp_path):
    for each in attack(tmp_path):
        for kind in (
            {"kind": "keras", "config": each},
            {"kind": "class", "config": each},
            {"kind": "model", "config": each, "weights": {"kind": "list", "items": []}},
            Writer().write(each),
        ):
            strange = tampered(file, lambda document, node=kind: document["parameters"].update(model=node))
            with pytest.raises(ValueError, match=r"an estimator's save wrote: .* no class that a file may name"):
                kopt.load(strange)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update({"class": "Writer"}),
        lambda d: d.update({"format": 99}),
        lambda d: d["parameters"].update(callback=3),
        lambda d: d["fitted"].update(fit=3),
        lambda d: d["fitted"].update(model_=3),
        lambda d: d["fitted"].update(__class__=3),
        lambda d: d["fitted"].update(x_={"kind": "own", "name": "Writer", "state": {"kind": "dict", "items": []}}),
        lambda d: d["fitted"].update(x_={"kind": "function", "name": "Network"}),
        lambda d: d["fitted"].update(x_={"kind": "function", "name": "load"}),
        lambda d: d["fitted"].update(x_={"kind": "code", "name": "open"}),
        lambda d: d["fitted"].update(x_={"kind": "array", "number": 0, "dtype": "O", "shape": [1]}),
        lambda d: d["fitted"].update(x_={"kind": "array", "number": 0, "dtype": "<f4", "shape": [10**12]}),
        lambda d: d["fitted"].update(x_={"kind": "array", "number": "../../x", "dtype": "<f4", "shape": [1]}),
        lambda d: d["fitted"].update(x_={"kind": "array", "number": 10**6, "dtype": "<f4", "shape": [1]}),
    ],
)
def test_strange_documents_are_refused(change, file):
    with pytest.raises(ValueError, match=r"kopt.load: '.*net.kopt' must be a file that an estimator's save wrote: "):
        kopt.load(tampered(file, change))


def test_bombs_and_pickles_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match="its entries must not be compressed"):
        kopt.load(tampered(file, lambda _: None, zipfile.ZIP_DEFLATED))
    (tmp_path / "net.pickle").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ValueError, match="must be a file that an estimator's save wrote"):
        kopt.load(tmp_path / "net.pickle")


def test_configurations_of_keras_and_of_kopt_are_let_through():
    for each in (
        *(template(), kopt.SAM(kopt.SGD()), keras.losses.Huber(), kopt.layers.DropPath(0.1)),
        *(kopt.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9)), layers.LSTM(3, dtype="mixed_bfloat16")),
    ):
        assert checked(keras.saving.serialize_keras_object(each))


# ---- other forms -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_export_to_a_saved_model(fitted, tmp_path, capfd):
    import tensorflow as tf

    fitted.export(tmp_path / "saved")
    assert capfd.readouterr().out == ""
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(X), fitted.model_(X), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of tf2onnx
def test_export_to_onnx(fitted, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    fitted.export(tmp_path / "net.onnx", "onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: X.astype(fitted._network.blueprint.dtype)})
    np.testing.assert_allclose(found, fitted.model_(X), rtol=1e-4, atol=1e-6)


def test_export_names_what_is_missing(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = (
        "KerasClassifier: export to ONNX needs onnx and tf2onnx, not installed here. Try pip install onnx tf2onnx."
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        fitted.export(tmp_path / "net.onnx", "onnx")
    with pytest.raises(ValueError, match="format must be one of 'tf_saved_model', 'onnx', got 'h5'"):
        fitted.export(tmp_path / "net.h5", "h5")


def test_the_network_is_drawn(fitted):
    shown = fitted._repr_html_()
    assert shown.count("<rect") == len(fitted.model_.layers) == 6
    assert shown.count('marker-end="url(#kopt-arrow)"') == 6  # four from layer to layer, and around the residual one
    assert "Network of 93 weights" in shown
    assert fitted._repr_mimebundle_()["text/html"].count("<rect") == 6
    picture = shown[shown.index("<details open><summary>Network") :]
    assert "<script" not in picture
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    assert "<rect" not in clone(fitted)._repr_html_()


def test_names_in_the_drawing_are_escaped():
    shown = drawn(keras.Sequential([keras.Input((4,)), layers.Activation("relu", name="a<script>")]))
    assert "a&lt;script&gt;" in shown
    assert "<script>" not in shown


def test_summary_is_that_of_keras(fitted):
    lines = []
    fitted.summary(print_fn=lines.append)
    assert "Total params: 93" in "\n".join(lines)
    with pytest.raises(NotFittedError):
        clone(fitted).summary()
