"""In which order each stage takes the micro-batches forward and backward: pure functions, no tensors."""

from typing import NamedTuple


class Task(NamedTuple):
    """What a stage does next.

    Attributes:
        forward: whether it is the pass forward, else the one back.
        number: of the micro-batch.
    """

    forward: bool
    number: int


def gpipe(stages, micro_batches):
    """All forward, then all backward: every stage holds all micro-batches.

    Args:
        stages: how many.
        micro_batches: how many.

    Returns:
        For each stage the list of its `Task`s, in order.

    References:
        Huang et al., *GPipe*, 2019. https://arxiv.org/abs/1811.06965
    """
    passes = [Task(forward, number) for forward in (True, False) for number in range(micro_batches)]
    return [list(passes) for _ in range(stages)]


def one_forward_one_backward(stages, micro_batches):
    """Each micro-batch goes back as soon as it can: stage k of S holds at most S - k micro-batches, k from 0.

    Arguments and result are those of `gpipe`.

    References:
        Narayanan et al., *PipeDream*, 2019. https://arxiv.org/abs/1806.03377
        Narayanan et al., *Memory-Efficient Pipeline-Parallel DNN Training*, 2021. https://arxiv.org/abs/2006.09503
    """

    def tasks(stage):
        early = min(stages - 1 - stage, micro_batches)
        steady = [Task(*task) for n in range(early, micro_batches) for task in ((True, n), (False, n - early))]
        rest = range(micro_batches - early, micro_batches)
        return [Task(True, n) for n in range(early)] + steady + [Task(False, n) for n in rest]

    return [tasks(stage) for stage in range(stages)]


SCHEDULES = {"1f1b": one_forward_one_backward, "gpipe": gpipe}


def run(table, seconds=lambda task, stage: 1.0, early=lambda task, stage: 0.0):
    """Plays a schedule, with as many workers as stages.

    Args:
        table: for each stage the list of its `Task`s.
        seconds: how long a task takes at a stage.
        early: how much of that can be done before what the task needs from other stages is there.

    Yields:
        (start, end, stage, task), by starts: each task as soon as its stage is free and what it needs is there.

    Raises:
        ValueError: the stages would wait for each other.
    """
    ends, free, left = {}, [0.0] * len(table), [list(tasks) for tasks in table]
    played = []
    while any(left):
        ready = []
        for stage, tasks in enumerate(left):
            needs = [] if not tasks else _before(tasks[0], stage, len(table))
            if tasks and all(need in ends for need in needs):
                ahead = early(tasks[0], stage)
                ready.append((max([free[stage], *(ends[need] - ahead for need in needs)]), stage))
        if not ready:
            raise ValueError(f"schedule: a task must come after what it needs, got {table!r}.")
        start, stage = min(ready)
        task = left[stage].pop(0)
        free[stage] = ends[stage, task] = start + seconds(task, stage)
        played.append((start, free[stage], stage, task))
    yield from sorted(played)


def _before(task, stage, stages):
    """What must be done before a task of a stage: (stage, task) pairs."""
    if task.forward:
        return [(stage - 1, task)] if stage else []
    own = (stage, Task(True, task.number))
    return [own] if stage == stages - 1 else [own, (stage + 1, task)]


def held(tasks):
    """How many micro-batches a stage holds at most: those that went forward and not yet back."""
    now = most = 0
    for task in tasks:
        now += 1 if task.forward else -1
        most = max(most, now)
    return most


def bubble(stages, micro_batches):
    """The share of time in which a stage waits: (S - 1) / (M + S - 1), for equal stages and either schedule."""
    return (stages - 1) / (micro_batches + stages - 1)
