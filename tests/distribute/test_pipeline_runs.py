"""Pipelines that need processes of their own: how far stages overlap, and stages on other machines."""

import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.slow


def run(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=BENCHMARKS).stdout


def test_stages_overlap_and_hold_what_the_schedule_says():
    """Stages one after another would take 2.25 times the ideal; sleeping ones need no processor."""
    code = """
        import json, sys
        sys.path.insert(0, ".")
        import pipeline
        pipeline.FORWARD = 0.05
        pipeline.devices(3)
        found = [pipeline.overlap(3, 6, schedule, False, turns=1) for schedule in ("1f1b", "gpipe")]
        how = dict(stages=3, micro_batches=6, layers=8, width=2**14, rows=300)
        print(json.dumps([found, [pipeline.memory("gpipe", recompute, **how) for recompute in (True, False)]]))
    """
    found, (recomputing, more) = json.loads(run(code).splitlines()[-1])
    for ideal, taken, _ in found:
        assert ideal <= taken < 1.5 * ideal
    assert [held for *_, held in found] == [3, 6]
    assert more > recomputing  # without recomputation the peak rises by as much again, on top of that


SERVER = """
    import json, sys
    import tensorflow as tf
    cluster = tf.train.ClusterSpec(json.loads(sys.argv[1]))
    tf.distribute.Server(cluster, job_name="stage", task_index=int(sys.argv[2]), protocol="grpc").join()
"""

CONTROLLER = """
    import json, sys
    import numpy as np
    import tensorflow as tf
    tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(json.loads(sys.argv[1])), job_name="controller")
    import keras
    import kopt

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 6)).astype("float32"), rng.normal(size=(30, 3)).astype("float32")

    def fit(cls, optimizer, **how):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        a = keras.layers.Dense(8, "tanh", name="a")(inputs)
        b = keras.layers.Dense(8, "tanh", name="b")(a)
        model = cls(inputs, keras.layers.Dense(3)(keras.layers.Add()([a, b])), **how)
        model.compile(optimizer, "mse", metrics=["mae"])
        history = model.fit(x, y, batch_size=8, epochs=2, verbose=0).history
        return model, history

    devices = [f"/job:stage/task:{task}/device:CPU:0" for task in range(2)]
    found = []
    for optimizer in (keras.optimizers.Adam, kopt.AdamW):
        one, history = fit(kopt.Model, optimizer(0.01, epsilon=1e-3))
        how = dict(stages=["a"], micro_batches=3, devices=devices)
        many, other = fit(kopt.PipelineModel, optimizer(0.01, epsilon=1e-3), **how)
        found.append(max(np.abs(a - b).max() for a, b in zip(one.get_weights(), many.get_weights())))
        found += [np.abs(np.subtract(history[name], other[name])).max() for name in history]
        found.append(np.abs(one.predict(x, verbose=0) - many.predict(x, verbose=0)).max())
    where = {v.path.split("/")[0]: v.value.device for v in many.weights}
    slots = sorted({v.value.device for v in many.optimizer.variables})
    print(json.dumps([float(max(found)), where, slots]))
"""


def test_stages_on_other_machines():
    import socket

    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    cluster = json.dumps({"stage": [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]})
    for each in sockets:
        each.close()
    command = [sys.executable, "-c", textwrap.dedent(SERVER), cluster]
    servers = [subprocess.Popen([*command, str(task)], stderr=subprocess.DEVNULL) for task in range(2)]
    try:
        off, where, slots = json.loads(run(CONTROLLER, cluster).splitlines()[-1])
    finally:
        for server in servers:
            server.kill()
            server.wait()
    assert off < 1e-6
    assert where["a"] == "/job:stage/replica:0/task:0/device:CPU:0"
    assert where["b"] == "/job:stage/replica:0/task:1/device:CPU:0"
    assert [name for name in slots if "stage" in name] == [where["a"], where["b"]]
