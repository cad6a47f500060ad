"""How far the stages of a `kopt.PipelineModel` overlap, and what they hold, with and without recomputation.

Overlap: each stage sleeps for a while forward, and for twice as long backward, one pass at a time, as a device would
compute. The ideal is the schedule itself, played without any overhead; "of ideal" is its time over the one measured.
Held: micro-batches that the first stage has taken forward and not yet back, at most, as it was seen to happen.

Memory: stages of activations alone; how far a step raises the process's peak.

    python benchmarks/pipeline.py
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from rich import box
from rich.console import Console
from rich.table import Table

import kopt
from kopt.distribute.pipeline import schedules

FORWARD = 0.1
"""Seconds that a stage sleeps forward."""


class Stage(keras.Layer):
    """Sleeps in the place of computing, and writes down when.

    Args:
        log: what (pipeline, name, forward, start, end) is added to.
    """

    def __init__(self, log, **kwargs):
        super().__init__(**kwargs)
        self.__dict__.update(log=log, locks=collections.defaultdict(threading.Lock))

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def sleep(self, x, who, forward):
        pipeline = int(who[0, 0])
        with self.locks[pipeline]:
            start = time.perf_counter()
            time.sleep(FORWARD if forward else 2 * FORWARD)
            self.log.append((pipeline, self.name, forward, start, time.perf_counter()))
        return x

    def call(self, inputs):
        def asleep(x, who, forward):
            out = tf.numpy_function(lambda x, who: self.sleep(x, who, forward), [x, who], x.dtype, stateful=False)
            return tf.ensure_shape(out, x.shape)

        @tf.custom_gradient
        def slow(x, who):
            return asleep(x, who, True), lambda slope: (asleep(slope, who, False), None)

        x, who = inputs
        return keras.ops.tanh(slow(x * self.scale, who))  # whose way back needs what the way forward has found


def devices(number):
    """Makes so many logical CPUs, with threads enough for all of them to sleep."""
    tf.config.threading.set_inter_op_parallelism_threads(4 * number)
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * number)


def overlap(stages, micro_batches, schedule, recompute, pipelines=1, turns=3):
    """Returns the ideal and the measured seconds of a step, and how many micro-batches the first stage held."""
    log = []
    inputs = x, who = keras.Input((4,)), keras.Input((1,))
    for number in range(stages):
        x = Stage(log, name=f"stage{number}")([x, who])
    how = dict(micro_batches=micro_batches, schedule=schedule, recompute=recompute, pipelines=pipelines)
    model = kopt.PipelineModel(inputs, x, stages=[f"stage{n}" for n in range(stages - 1)], **how)
    model.compile(kopt.SGD(0.1), "mse")
    rows = 2 * micro_batches * pipelines
    whose = np.repeat(np.arange(pipelines), rows // pipelines)[:, None]
    data = [np.ones((rows, 4), "float32"), whose.astype("float32")], np.zeros((rows, 4), "float32")
    model.train_on_batch(*data)
    taken = []
    for _ in range(turns):
        log.clear()
        model.train_on_batch(*data)
        taken.append(max(end for *_, end in log) - min(start for *_, start, _ in log))
    table = schedules.SCHEDULES[schedule](stages, micro_batches)
    again = [recompute and schedules.held(tasks) > 1 for tasks in table]

    def seconds(task, stage):
        return FORWARD if task.forward else FORWARD * (3 if again[stage] else 2)

    def early(task, stage):
        return FORWARD if again[stage] and not task.forward else 0.0

    ideal = max(end for _, end, *_ in schedules.run(table, seconds, early))
    first = sorted((start, forward) for who, name, forward, start, _ in log if (who, name) == (0, "stage0"))
    return ideal, float(np.median(taken)), held([forward for _, forward in first], again[0])


def held(passes, again):
    """The most micro-batches that were forward and not back; `again`: before each pass back another one forward."""
    now = most = 0
    for forward in passes:
        now += 1 if forward else -2 if again else -1
        most = max(most, now)
    return most - again


def peak():
    """The peak memory of this process in MB, on Linux; what getrusage tells begins with that of the parent."""
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def memory(schedule, recompute, stages=4, micro_batches=8, layers=10, width=2**15, rows=256):
    """Returns by how many MB a step raises the peak of this process."""
    inputs = keras.Input((8,))
    x = keras.layers.Dense(width, name="wide")(inputs)
    for number in range(stages * layers):
        x = keras.layers.Activation("tanh", name=f"layer{number}")(x)
    outputs = keras.layers.Dense(1)(x)
    ends = [f"layer{layers * (number + 1) - 1}" for number in range(stages - 1)]
    how = dict(micro_batches=micro_batches, schedule=schedule, recompute=recompute)
    model = kopt.PipelineModel(inputs, outputs, stages=ends, **how)
    model.compile(kopt.SGD(0.1), "mse")

    def step(rows):
        model.train_on_batch(np.ones((rows, 8), "float32"), np.zeros((rows, 1), "float32"))
        return peak()

    model.make_train_function()
    before = step(micro_batches)
    return step(rows) - before


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[8])
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        devices(4)
        print(memory(**json.loads(arguments.memory)))
        return
    devices(8)
    columns = ["schedule", "recompute", "pipelines", "stages", "micro-\nbatches", "ideal s", "measured s", "of ideal"]
    table = Table(*columns, "held", title="Overlap of sleeping stages", box=box.SIMPLE)
    cases = [(s, m, 1) for s in arguments.stages for m in arguments.micro_batches] + [(4, 8, 2)]
    for schedule in schedules.SCHEDULES:
        for recompute in (False, True):
            for stages, micro_batches, pipelines in cases:
                ideal, taken, most = overlap(stages, micro_batches, schedule, recompute, pipelines)
                row = [schedule, recompute, pipelines, stages, micro_batches]
                table.add_row(*map(str, row), f"{ideal:.2f}", f"{taken:.2f}", f"{ideal / taken:.1%}", str(most))
    Console(width=100).print(table)
    table = Table(
        "schedule", "recompute", "MB", title="Activations of a step, 4 stages, 8 micro-batches", box=box.SIMPLE
    )
    for schedule in schedules.SCHEDULES:
        for recompute in (False, True):
            how = json.dumps(dict(schedule=schedule, recompute=recompute))
            found = subprocess.run(
                [sys.executable, __file__, "--memory", how], capture_output=True, text=True, check=True
            )
            table.add_row(schedule, str(recompute), f"{float(found.stdout):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
