"""Which devices are meant, and how variables come to lie on them."""

import contextlib
import gc
from typing import Any

import keras
import tensorflow as tf


def devices_of(devices, number, owner):
    """Returns the full names of so many devices.

    Args:
        devices: names such as `"GPU:1"` or `"/job:stage/task:0/device:CPU:0"`, one for each; all GPUs, or all logical
            CPUs where there is no GPU, where None.
        number: how many are needed.
        owner: who asks, for errors.

    Raises:
        ValueError: there is no such device, or there are not as many.
    """
    known = tf.config.list_logical_devices()
    if devices is None:
        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        names = [device.name for device in found][:number]
    else:
        names = [_full(device, known, owner) for device in devices]
    if len(names) != number:
        raise ValueError(
            f"{owner}: devices must be {number}, one for each stage of each pipeline, got {len(names)}: {names}. Name "
            "a device several times to let it have several stages."
        )
    return names


def _full(device, known, owner):
    """The full name of a device among those that are known."""
    for each in known:
        if _names(_spec(device), _spec(each.name)):
            return each.name
    names = ", ".join(each.name for each in known)
    raise ValueError(f"{owner}: devices must be among {names}, got {device!r}.")


def _names(asked, spec):
    """Whether a name, which may leave parts out, is that of a device."""
    if asked is None or not asked.device_type:
        return False
    pairs = [(asked.job, spec.job or "localhost"), (asked.replica, spec.replica or 0), (asked.task, spec.task or 0)]
    pairs += [(asked.device_type, spec.device_type), (asked.device_index or 0, spec.device_index)]
    return all(one is None or one == other for one, other in pairs)


def _spec(name) -> Any:
    """A device's name in its parts; None for what is no name of one."""
    try:
        return tf.DeviceSpec.from_string(name)
    except (ValueError, AttributeError, TypeError):
        return None


def place(variables, device):
    """Makes Keras variables lie on a device; returns those that did not."""
    moved = []
    for variable in variables:
        if not _same(variable.value.device, device):
            with tf.device(device):
                variable._initialize(tf.identity(variable.value))
            moved.append(variable)
    return moved


def _same(one, other):
    """Whether two full names are those of one device: a process without a cluster leaves its own job out."""
    specs = [_spec(name) for name in (one, other)]
    parts = [(x.job or "localhost", x.replica or 0, x.task or 0, x.device_type, x.device_index) for x in specs]
    return parts[0] == parts[1]


@contextlib.contextmanager
def beside_weights(optimizer):
    """A context in which an optimizer computes what it does with a weight where the weight lies.

    It says nothing of devices, and all would be computed on the first one: in a graph, an operation without a device
    gets that of the largest of its operands. Keras's optimizers sum all gradients over replicas by one operation, of
    which there is but one here: it would bring them together, and is left out.
    """
    if tf.executing_eagerly():
        yield
        return
    with tf.compat.v1.get_default_graph().device(_beside):
        optimizer.__dict__["_all_reduce_sum_gradients"] = list
        try:
            yield
        finally:
            del optimizer.__dict__["_all_reduce_sum_gradients"]


def _beside(operation):
    """The device of an operation that is being made."""
    if operation.device or not operation.inputs:
        return operation.device
    return max(((_device_of(x), _size_of(x)) for x in operation.inputs), key=lambda pair: (pair[0] != "", pair[1]))[0]


def _size_of(tensor):
    """How many entries a tensor has; more than any other where that is not known, or it is a variable itself."""
    known = None if tensor.dtype == tf.resource else tensor.shape.num_elements()
    return float("inf") if known is None else known


def _device_of(tensor):
    """Where a tensor in a graph is, as far as it was said: what reads a variable is where the variable is."""
    if tensor.op.device:
        return tensor.op.device
    if handles := [x for x in tensor.op.inputs if x.dtype == tf.resource]:
        return _device_of(handles[0])
    for outside, inside in getattr(tensor.graph, "captures", ()) if tensor.op.type == "Placeholder" else ():
        if inside is tensor:
            return outside.device if isinstance(outside, tf.__internal__.EagerTensor) else _device_of(outside)
    return ""


def forget_programs(variables):
    """Lets every model that has some of these variables, which were moved, trace its functions anew.

    What a model has compiled before would go on with the variables as they were. No model knows which others share
    its layers, so that all are looked for.
    """
    moved = {id(variable) for variable in variables}
    for model in [each for each in gc.get_objects() if issubclass(type(each), keras.Model)]:
        if "_layers" not in vars(model) or moved.isdisjoint(map(id, model.variables)):  # not even begun, or another's
            continue
        model.train_function = model.test_function = model.predict_function = None
        if (engine := model.__dict__.get("_compiled_engine")) is not None:  # of a kopt.Model
            engine.forget()
