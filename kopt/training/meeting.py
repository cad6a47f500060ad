"""Functions called one at a time that wait for each other where their networks train, so that these train together."""

import contextvars
import threading
from typing import Any

import keras

_here: Any = contextvars.ContextVar("kopt.training.meeting", default=None)


def call_together(functions, train_all):
    """Calls functions, and returns what they return, in order.

    Each runs until it would train a network, or to its end; then the next one does. The networks that wait are trained,
    and each function goes on, until all are done. No two run at a time, so that nothing depends on how threads are
    scheduled; each has a thread because Python's functions cannot be halted otherwise.

    Args:
        functions: without arguments.
        train_all: trains those that can train together of the `kopt.training.together.Fit`s that wait; returns for each
            whether it was trained, and the error to raise there, if any.

    Raises:
        Exception: what the first function that fails raises; the others are not continued.
    """
    calls = [_Call(function) for function in functions]
    try:
        for call in calls:
            call.proceed()
        while waiting := [call for call in calls if call.fit is not None]:
            outcomes = train_all([call.fit for call in waiting])
            for call, (trained, error) in zip(waiting, outcomes, strict=True):
                call.proceed(trained, error)
    finally:
        for call in calls:
            call.abandon()
    return [call.result for call in calls]


def meet(fit):
    """Waits until a network has been trained with others, and raises what it met there.

    Returns:
        Whether it has been trained: not where nobody calls functions together, nor where there is none like it.
    """
    call = _here.get()
    return call is not None and not fit.is_apart and call.wait(fit)


class _Abandoned(BaseException):
    """Ends a function that will not be continued."""


class _Call:
    """A function that runs only while `proceed` is waited for.

    Attributes:
        fit: what it waits for, if it does.
        result: what it has returned.
    """

    def __init__(self, function):
        self.fit: Any = None
        self.result: Any = None
        self._function, self._raised = function, None
        self._outcome: Any = None
        self._policy = keras.config.dtype_policy()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=[self._run], daemon=True)

    def _run(self):
        self._go.acquire()
        _here.set(self)
        try:
            keras.config.set_dtype_policy(self._policy)  # Keras has one for each thread
            self.result = self._function()
        except BaseException as error:
            self._raised = error
        self._back.release()

    def proceed(self, trained=False, error=None):
        """Lets the function run until it waits or ends, and raises what it raises.

        Args:
            trained: whether what it waits for has happened.
            error: to raise where it waits.
        """
        if self._thread.ident is None:
            self._thread.start()
        self.fit, self._outcome = None, (trained, error)
        self._go.release()
        self._back.acquire()
        if self._raised is not None:
            raise self._raised

    def abandon(self):
        """Ends the function where it waits, or would wait next."""
        self._outcome = False, _Abandoned()
        self._go.release()

    def wait(self, fit):
        """Waits, in the function, until somebody proceeds; returns whether the network has been trained."""
        self.fit = fit
        self._back.release()
        self._go.acquire()
        trained, error = self._outcome
        if error is not None:
            raise error
        return trained
