"""Estimators in files without pickle: JSON and arrays in a zip, which may come from strangers."""

import importlib
import importlib.util
import inspect
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from kopt._checks import check_choice
from kopt.estimators.documents import NotWritable, Reader, Writer
from kopt.estimators.parameters import Parameters, require_tensorflow

FORMAT = 1
"""The version of the form of files. A newer kopt reads older ones."""


class Files(Parameters):
    """An estimator that can be saved, and whose network can be exported."""

    def save(self, path):
        """Writes the estimator to one file: parameters, weights, the optimizer's state, everything that was fitted.

        `kopt.load` brings it back, to go on to the bit. Parameters that are code, as a function that makes the
        network or computes the loss, are not written: `kopt.load` has to be given them.

        Args:
            path: of the file, which is replaced where there is one. Commonly it ends in `.kopt`.

        Raises:
            TypeError: the class is not kopt's own, or something that was fitted cannot be written.
        """
        name, path = type(self).__name__, pathlib.Path(path)
        if _kinds().get(name) is not type(self):
            raise TypeError(f"{name}: save must be given an estimator of kopt's own classes. Pickle subclasses.")
        writer, parameters = Writer(), {}
        for parameter, value in self.get_params(deep=False).items():
            try:
                parameters[parameter] = writer.write(value)
            except NotWritable:
                writer.code[id(value)] = parameter
                parameters[parameter] = writer.write(value)
        fitted = {}
        for attribute, value in self.__getstate__().items():
            if attribute in parameters or attribute == "_skl_callbacks":  # belong to the session, as others do
                continue
            try:
                fitted[attribute] = writer.write(value)
            except NotWritable as error:
                raise TypeError(f"{name}: {attribute} cannot be written to a file: {error}. Pickle it.") from None
        document = {"format": FORMAT, "kopt": importlib.import_module("kopt").__version__, "class": name}
        document |= {"parameters": parameters, "fitted": fitted}
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with zipfile.ZipFile(unfinished, "w") as file:
                file.writestr("estimator.json", json.dumps(document))
                for number, array in enumerate(writer.arrays):
                    file.writestr(f"arrays/{number}", array.tobytes())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def export(self, path, format="tf_saved_model", **options):
        """Writes the network `model_` in another library's form, by `keras.Model.export`.

        Its outputs are those of `model_`: logits, where it ends in no softmax or sigmoid.

        Args:
            path: a folder for a SavedModel, a file for ONNX.
            format: "tf_saved_model" or "onnx", for which `onnx` and `tf2onnx` have to be installed.
            **options: as in `keras.Model.export`.

        Raises:
            ModuleNotFoundError: a library is missing.
        """
        name = type(self).__name__
        check_choice(name, ("tf_saved_model", "onnx"), format=format)
        missing = [each for each in ("onnx", "tf2onnx") if importlib.util.find_spec(each) is None]
        if format == "onnx" and missing:
            raise ModuleNotFoundError(
                f"{name}: export to ONNX needs {' and '.join(missing)}, not installed here. "
                f"Try pip install {' '.join(missing)}.",
                name=missing[0],
            )
        model: Any = self.model_  # pyright: ignore[reportAttributeAccessIssue]
        for inputs in getattr(model, "inputs", None) or ():
            model(np.zeros([size or 1 for size in inputs.shape], inputs.dtype))  # else Keras refuses ONNX
        model.export(str(path), format=format, **{"verbose": False} | options)


def load(path, **code):
    """Reads an estimator that its method `save` has written.

    No file can run code, read other files or reach the network: a file holds numbers, words, and names of classes of
    Keras and kopt, or of those that you have registered by `keras.saving.register_keras_serializable`. Any other name
    is refused.

    Args:
        path: of the file.
        **code: the parameters that are code and so are not in the file, as in `load("net.kopt", model=build)`.

    Raises:
        ValueError: the file is no such file, names what it may not, or lacks parameters that are code.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                raise ValueError("its entries must not be compressed")
            document = json.loads(file.read("estimator.json"))
            return _restored(document, Reader(lambda number: file.read(f"arrays/{int(number)}"), code))
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"kopt.load: {str(path)!r} must be a file that an estimator's save wrote: {error}") from error


def _restored(document, reader):
    if document["format"] > FORMAT:
        raise ValueError(f"its format is {document['format']}, of kopt {document['kopt']}. Upgrade kopt.")
    kind = _kinds()[document["class"]]
    require_tensorflow(kind.__name__)
    nodes = [node for node in document["parameters"].values() if isinstance(node, dict)]
    needed = {node["name"] for node in nodes if node["kind"] == "code"}
    if wrong := needed ^ reader.code.keys():
        raise ValueError(
            f"{', '.join(sorted(wrong))} must be given exactly where the parameter is code, which no file holds; in "
            f"this one {', '.join(sorted(needed)) or 'none'} is."
        )
    estimator = kind(**{name: reader.read(node) for name, node in document["parameters"].items()})
    fitted = {name: reader.read(node) for name, node in document["fitted"].items()}
    for name in fitted:
        held = inspect.getattr_static(kind, name, None)
        if name.startswith("__") or callable(held) or isinstance(held, property):
            raise ValueError(f"{name} is no attribute that a fit leaves")
    estimator.__dict__.update(fitted)
    return estimator


def _kinds():
    """kopt's estimators, by name."""
    from kopt import estimators

    found = {name: getattr(estimators, name) for name in estimators.__all__}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, Files)}
