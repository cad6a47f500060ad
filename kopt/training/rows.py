"""Training data as rows that can be visited in any order: on the device whole, or in blocks that are made ahead."""

import concurrent.futures
import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from kopt._keras import are_arrays, as_tensors, split
from kopt.training.progress import order_of

RESIDENT = 2**28
"""Arrays of at most so many bytes lie on the device whole, unless they are memory maps."""

BLOCK = 2**26
"""Bytes in a block of larger ones: training holds about four."""


@dataclasses.dataclass
class Part:
    """Rows on the device, and the batches of them to visit.

    Attributes:
        tensors: the rows' arrays.
        order: of the rows, int32.
        first: the first batch's number, counted from the beginning of `order`.
        last: the number after the last one's.
        rows: how many entries of `order` count.
    """

    tensors: list[Any]
    order: Any
    first: int
    last: int
    rows: int


def are_rows(model, *data):
    """Whether data are dense arrays, or scipy's sparse ones for a model that takes dense ones."""
    arrays = [array for array in tree.flatten(data) if array is not None]
    if not are_arrays(*arrays) or any(isinstance(array, tf.SparseTensor | tf.RaggedTensor) for array in arrays):
        return False
    sparse = any(getattr(tensor, "sparse", False) for tensor in getattr(model, "inputs", None) or ())
    return not (sparse and any(hasattr(array, "tocsr") for array in arrays))


def split_rows(data, fraction):
    """Parts of arrays for training and for validation, the last rows, as Keras has them. Memory maps stay maps."""
    mapped = tree.map_structure(lambda x: np.arange(len(x)) if isinstance(x, np.memmap) else x, data)

    def part(x, some):
        return x[some[0] : some[-1] + 1] if isinstance(x, np.memmap) else some

    return tuple(tree.map_structure(part, data, some) for some in split(mapped, fraction))


class Rows:
    """Arrays with one row for each sample.

    Args:
        iterator: Keras's `EpochIterator` over them, which has checked them.
        shuffle: as `fit` takes it.

    Attributes:
        structure: of a batch: arrays, or None, in tuples and dictionaries.
        specs: of the tensors in it.
        batch_size: rows in a batch.
        steps: batches in an epoch.
    """

    def __init__(self, iterator, shuffle=False):
        adapter = iterator.data_adapter
        inputs = tree.lists_to_tuples(adapter._inputs)
        self.structure = tree.map_structure(lambda array: None if array is None else "tensor", inputs)
        self.arrays = [_indexable(array) for array in tree.flatten(inputs) if array is not None]
        self.number, self.batch_size = self.arrays[0].shape[0], adapter.batch_size
        self.shuffle = shuffle if self.batch_size < self.number else False  # all rows at once have no order
        self._per_pass = adapter.num_batches
        self._asked = iterator.steps_per_epoch
        self.steps = self._asked or self._per_pass
        mapped = any(isinstance(array, np.memmap) for array in self.arrays)
        small = sum(getattr(array, "nbytes", math.inf) for array in self.arrays) <= BLOCK
        self._resident = self._take(slice(None)) if small and not mapped else None
        sample = self._resident or self._take(slice(0, 1))
        self.specs = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in sample]
        row = sum(spec.dtype.size * spec.shape[1:].num_elements() for spec in self.specs)
        self._per_block = 0  # for all in one
        if row * self.number > (BLOCK if mapped else RESIDENT):
            self._per_block = max(BLOCK // (row * self.batch_size), 1)

    @property
    def key(self):
        """What of the data goes into a program."""
        return repr(self.structure), *self.specs

    def walk(self, progress):
        """Returns a `Walk` over what is left of an epoch. Close it."""
        return Walk(self, self._parts(progress.seed, progress.epoch, progress.step))

    def rewind(self):
        """Does nothing: where a walk begins, `progress` says."""

    def _parts(self, seed, epoch, step):
        """Yields the `Part`s of an epoch, from a step of it on.

        Where an epoch has less steps than there are batches, a pass over all of them takes several epochs.
        """
        number, turn = divmod(epoch, math.ceil(self._per_pass / self.steps))
        begin, end = turn * self.steps, (turn + 1) * self.steps
        order = order_of(self.number, self.batch_size, self.shuffle, seed, number)
        first, last = begin + step, min(end, self._per_pass)
        if first < last:
            yield from (self._blocks if self._per_block else self._whole)(order, first, last)
        if end > self._per_pass and self._asked:
            warnings.warn(
                f"Your input ran out of data: it has {self._per_pass} batches, and steps_per_epoch is {self._asked}.",
                stacklevel=2,
            )

    def _whole(self, order, first, last):
        if self._resident is None:
            self._resident = self._take(slice(None))
        yield Part(self._resident, order, first, last, self.number)

    def _blocks(self, order, first, last):
        """Blocks of several batches each, while the next one is being made."""
        size = self._per_block * self.batch_size

        def load(number):
            rows = order[number * size : (number + 1) * size]
            full = np.pad(rows, (0, size - len(rows)), mode="edge")  # as XLA compiles for one shape
            by_place = np.argsort(full, kind="stable")  # which is how a disk is read fastest
            within = np.empty_like(full)
            within[by_place] = np.arange(size, dtype=full.dtype)
            begin = number * self._per_block
            bounds = max(first - begin, 0), min(last - begin, self._per_block)
            return Part(self._take(full[by_place]), within, *bounds, len(rows))

        numbers = range(first // self._per_block, math.ceil(last / self._per_block))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            part, coming = None, pool.submit(load, numbers[0])
            for number in numbers:
                del part  # before there is a third
                part = coming.result()
                if number + 1 < numbers.stop:
                    coming = pool.submit(load, number + 1)
                yield part

    def _take(self, index):
        """The rows' tensors, as Keras makes them."""
        return [tf.convert_to_tensor(x) for x in as_tensors([_part(array, index) for array in self.arrays])]


class Walk:
    """Takes the batches of parts, any number in a call of a program."""

    def __init__(self, rows, parts):
        self._rows, self._parts, self._part = rows, parts, None

    def goes_on(self):
        """Whether there are batches left."""
        if self._part is None:
            self._part = next(self._parts, None)
        return self._part is not None

    def take(self, program, steps):
        """Runs a program on the next batches, at most so many; returns how many, and what it returns."""
        part: Any = self._part
        last = min(part.first + steps, part.last)
        self._part = None if last == part.last else dataclasses.replace(part, first=last)
        return last - part.first, program(dataclasses.replace(part, last=last), self._rows.batch_size)

    def close(self):
        """Ends the making of blocks."""
        self._parts.close()


def _indexable(array):
    """An array of which rows can be taken.

    Raises:
        ValueError: its rows differ in shape.
    """
    if str(getattr(array, "dtype", "")) == "object" and not all(isinstance(x, str) for x in np.ravel(array)):
        kinds = sorted({type(x).__name__ for x in np.ravel(array)})
        raise ValueError(
            f"Model: rows of an array must be numbers or strings of one shape, got objects of type {', '.join(kinds)}. "
            "Pad ragged rows with keras.utils.pad_sequences, or pass a tf.RaggedTensor."
        )
    if hasattr(array, "tocsr"):
        return array.tocsr()
    return array if tf.is_tensor(array) or hasattr(array, "iloc") else np.asanyarray(array)


def _part(array, index):
    if hasattr(array, "tocsr"):
        return array[index].toarray()
    if hasattr(array, "iloc"):
        return array.iloc[index]
    if tf.is_tensor(array):
        return array[index] if isinstance(index, slice) else tf.gather(array, index)
    return array[index]
