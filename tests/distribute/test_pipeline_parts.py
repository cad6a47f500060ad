"""What a pipeline is planned with: schedules, cuts, balance and devices. No training."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kopt.distribute.pipeline import balance, graph, placement, schedules
from kopt.distribute.pipeline.schedules import Task

layers = keras.layers
SIZES = [(1, 1), (1, 3), (2, 1), (2, 8), (3, 2), (4, 4), (4, 9), (5, 3)]
ORDERS = pytest.mark.parametrize("make", schedules.SCHEDULES.values(), ids=schedules.SCHEDULES)


@ORDERS
@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_each_stage_takes_each_micro_batch_forward_and_then_back(make, stages, micro_batches):
    for tasks in make(stages, micro_batches):
        assert sorted(tasks) == sorted(Task(f, n) for f in (True, False) for n in range(micro_batches))
        for number in range(micro_batches):
            assert tasks.index(Task(True, number)) < tasks.index(Task(False, number))


@ORDERS
@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_stages_wait_for_no_more_than_the_bubble(make, stages, micro_batches):
    table = make(stages, micro_batches)
    played = list(schedules.run(table, lambda task, stage: 1.0 if task.forward else 2.0))
    end = max(end for _, end, *_ in played)
    assert end == 3.0 * (micro_batches + stages - 1)
    assert schedules.bubble(stages, micro_batches) == pytest.approx(1 - 3 * micro_batches / end)
    for a, b in itertools.combinations(played, 2):
        assert a[2] != b[2] or a[1] <= b[0]  # a stage does one thing at a time


def test_a_schedule_is_played_after_what_it_needs():
    ends = {(stage, task): end for _, end, stage, task in schedules.run(schedules.one_forward_one_backward(3, 4))}
    for start, _, stage, task in schedules.run(schedules.one_forward_one_backward(3, 4)):
        before = (stage - 1, task) if task.forward else (stage + 1, task)
        assert start >= ends.get(before, 0)


@pytest.mark.parametrize(("stages", "micro_batches"), SIZES)
def test_1f1b_holds_no_more_micro_batches_than_stages(stages, micro_batches):
    held = [schedules.held(tasks) for tasks in schedules.one_forward_one_backward(stages, micro_batches)]
    assert held == [min(stages - stage, micro_batches) for stage in range(stages)]
    assert {schedules.held(tasks) for tasks in schedules.gpipe(stages, micro_batches)} == {micro_batches}


def test_a_table_whose_stages_wait_for_each_other_is_refused():
    with pytest.raises(ValueError, match="a task must come after what it needs"):
        list(schedules.run([[Task(False, 0), Task(True, 0)]]))


def test_what_a_stage_does_ahead_shortens_its_wait():
    table = schedules.gpipe(2, 1)
    plain = max(end for _, end, *_ in schedules.run(table))
    ahead = max(end for _, end, *_ in schedules.run(table, early=lambda task, stage: 0.5 * (not task.forward)))
    assert ahead == plain - 0.5


def test_the_dearest_stage_is_as_cheap_as_can_be():
    rng = np.random.default_rng(0)
    for stages in (1, 2, 3, 4):
        costs = rng.uniform(size=9)

        def dearest(ends, costs=costs):
            return max(part.sum() for part in np.split(costs, ends))

        least = min(dearest(ends) for ends in itertools.combinations(range(1, 9), stages - 1))
        found = balance.cheapest_cuts(costs, stages)
        assert len(found) == stages - 1
        assert dearest(found) <= balance.SLACK * least


def test_cuts_are_made_where_they_may_be_and_cost_the_least_traffic():
    costs = np.ones(8)
    assert balance.cheapest_cuts(costs, 2, allowed=[3, 8]) == [3]
    costs = [1, 1, 1e-9, 1e-9, 1, 1]
    assert balance.cheapest_cuts(costs, 2, traffic=[0, 9, 9, 1, 9, 9, 0]) == [3]
    assert balance.cheapest_cuts(costs, 2, traffic=[0, 9, 9, 9, 1, 9, 0]) == [4]


class Slow(layers.Layer):
    """Takes so many products of matrices."""

    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def call(self, x):
        square = keras.ops.ones((200, 200))
        for _ in range(self.number):
            square = square @ square / 200
        return x + keras.ops.mean(square)


def test_balance_goes_by_measured_time(monkeypatch):
    inputs = x = keras.Input((4,))
    for number, times in enumerate([10, 10, 10, 40]):
        x = Slow(times, name=f"layer{number}")(x)
    measured = balance.seconds(keras.Model(inputs, x))
    assert max(measured) == measured[3]
    monkeypatch.setattr(balance, "seconds", lambda model: [1.0, 1.0, 1.0, 4.0])  # of which a busy machine is no judge
    assert balance.balanced(keras.Model(inputs, x), 2, "Test") == [3]
    with pytest.raises(ValueError, match=r"Test: stages must be at most 4, the number of layers of .*, got 5"):
        balance.balanced(keras.Model(inputs, x), 5, "Test")


@functools.cache
def skipping():
    inputs = keras.Input((3,), name="x")
    a = layers.Dense(4, name="a")(inputs)
    b = layers.Dense(5, name="b")(a)
    c = layers.Dense(4, name="c")(b)
    return keras.Model(inputs, layers.Add(name="sum")([c, a]))


def test_a_stage_takes_what_earlier_ones_give_and_tensors_skip_stages():
    model = skipping()
    stages = graph.cut(model, graph.ends_of(model, ["a", "b"], "Test"))
    assert [stage.names for stage in stages] == [["a"], ["b"], ["c", "sum"]]
    tensors = [model.inputs[0], *(model.get_layer(name).output for name in "abc"), model.outputs[0]]
    names = {id(tensor): name for tensor, name in zip(tensors, ["x", "a", "b", "c", "out"], strict=True)}
    assert [[names[id(x)] for x in stage.takes] for stage in stages] == [["x"], ["a"], ["b", "a"]]
    assert [[names[id(x)] for x in stage.gives] for stage in stages] == [["a"], ["b"], ["out"]]
    assert graph.crossing(model) == [0, 16, 36, 32, 16]


def test_an_early_output_and_a_shared_layer():
    inputs, shared = keras.Input((3,)), layers.Dense(3, name="shared")
    a = shared(inputs)
    b = layers.Dense(3, name="b")(a)
    model = keras.Model(inputs, [a, shared(b)])
    first, second = graph.cut(model, [2])
    assert [x is a for x in second.takes] == [False, True]
    assert first.gives[0] is a
    assert {v.path for v in second.used} == {v.path for v in shared.variables}
    assert second.variables == []


@pytest.mark.parametrize(
    ("names", "got"), [(["z"], "got 'z'"), (["b", "a"], r"got \['b', 'a'\]"), (["sum"], "without the last one")]
)
def test_cuts_by_hand_are_checked(names, got):
    with pytest.raises(ValueError, match=f"Test: stages must name layers .*{got}"):
        graph.ends_of(skipping(), names, "Test")


def test_devices_have_many_names():
    for name in ("CPU:1", "cpu:1", "/CPU:1", "/device:CPU:1", "/job:localhost/replica:0/task:0/device:CPU:1"):
        assert placement.devices_of([name], 1, "Test") == ["/device:CPU:1"]
    assert placement.devices_of(None, 2, "Test") == ["/device:CPU:0", "/device:CPU:1"]
    assert placement.devices_of(["CPU"], 1, "Test") == ["/device:CPU:0"]


@pytest.mark.parametrize("name", ["CPU:9", "foo", "", "/job:stage/task:0/device:CPU:0", 3])
def test_unknown_devices_are_refused(name):
    with pytest.raises(
        ValueError, match="Test: devices must be among /device:CPU:0, /device:CPU:1, /device:CPU:2, /device:CPU:3, got"
    ):
        placement.devices_of([name], 1, "Test")


@pytest.mark.parametrize(("devices", "got"), [(None, 4), (["CPU:0", "CPU:1"], 2)])
def test_too_few_devices_are_refused(devices, got):
    with pytest.raises(ValueError, match=f"devices must be 5, one for each stage of each pipeline, got {got}"):
        placement.devices_of(devices, 5, "Test")


def test_variables_move_once_and_keep_what_they_hold():
    variable = keras.Variable([1.0, 2.0], name="w", trainable=False)
    assert placement.place([variable], "/device:CPU:1") == [variable]
    assert variable.value.device.endswith("CPU:1")
    assert variable.numpy().tolist() == [1.0, 2.0]
    assert placement.place([variable], "/job:localhost/replica:0/task:0/device:CPU:1") == []
    variable.assign([3.0, 4.0])
    assert tf.reduce_sum(variable.value).numpy() == 7.0
