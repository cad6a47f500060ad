"""The folder of a search: what it is a search of, its folds, its journal, and who works on it."""

import contextlib
import pathlib
import shutil
from typing import NamedTuple

import numpy as np

from kopt.search.journal import Journal, Worker

FORMAT = 1
"""Of the journal. A later one says what it is, so that nothing is read as what it is not."""


class Project(NamedTuple):
    """What a search works with.

    Attributes:
        folds: pairs of rows to train on and rows to score on.
        seed: of the engine.
        journal: the `Journal`, or None.
        worker: the `Worker` that this process is, or None.
    """

    folds: list
    seed: object
    journal: Journal | None = None
    worker: Worker | None = None


@contextlib.contextmanager
def opened(directory, settings, folds, seed, *, resume, heartbeat):
    """Yields the `Project` in a folder: a new one, or the one that is there with its own folds and seed.

    Args:
        directory: the folder, made where there is none.
        settings: text by name, of everything that decides what the search finds.
        folds: pairs of arrays of row numbers, for a new project.
        seed: for a new project.
        resume: whether to go on with a project that is there; if not, it is removed.
        heartbeat: see `Worker`.

    Raises:
        ValueError: the folder cannot be written to, or holds another search.
    """
    path = pathlib.Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        worker = Worker(path, heartbeat)
        worker.__enter__()
    except OSError as error:
        raise ValueError(
            f"TunerSearchCV: directory must be a folder to write to, got {directory!r}: {error}."
        ) from error
    with contextlib.ExitStack() as stack:
        stack.push(worker)
        journal = Journal(path)
        with journal.locked():
            if not resume:
                _remove(path, worker)
            found = journal.news()
            if not found:
                _write_folds(path / "folds.npz", folds)
                journal.append({"format": FORMAT, "settings": settings, "seed": seed})
                found = journal.news()
        _compare(found[0], settings, directory)
        journal.restart()
        yield Project(_read_folds(path / "folds.npz"), found[0]["seed"], journal, worker)


def _remove(path, worker):
    others = [each.name for each in worker.directory.iterdir() if each.name != worker.name]
    if alive := [name for name in others if not worker.is_gone(name)]:
        raise ValueError(
            f"TunerSearchCV: resume must be True while others work in directory={str(path)!r}, got False. "
            f"At work: {', '.join(alive)}."
        )
    for name in others:
        (worker.directory / name).unlink()
    for name in ("journal.jsonl", "folds.npz"):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / "networks", ignore_errors=True)


def _compare(record, settings, directory):
    if record.get("format") != FORMAT:
        raise ValueError(f"TunerSearchCV: directory must hold a search of format {FORMAT}, got {record.get('format')}.")
    there = record["settings"]
    differences = [
        f"{name}: {there.get(name, 'nothing')} there, {settings.get(name, 'nothing')} here"
        for name in sorted(there.keys() | settings.keys())
        if there.get(name) != settings.get(name)
    ]
    if differences:
        raise ValueError(
            f"TunerSearchCV: directory={str(directory)!r} must hold the same search, got one that differs in "
            f"{'; '.join(differences)}. Choose another directory, or resume=False to begin anew."
        )


def _write_folds(path, folds):
    beside = path.with_name("folds.partial.npz")
    np.savez(beside, **{f"{part}{i}": rows for i, fold in enumerate(folds) for part, rows in zip("ab", fold)})
    beside.replace(path)


def _read_folds(path):
    with np.load(path) as file:
        return [(file[f"a{i}"], file[f"b{i}"]) for i in range(len(file.files) // 2)]
