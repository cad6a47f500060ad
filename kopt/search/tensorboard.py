"""A finished search as runs of TensorBoard's HParams plugin."""

import time
from pathlib import Path

import numpy as np


def write_runs(search, directory):
    """Writes the experiment, and a run for each candidate of a fitted search."""
    owner = f"{type(search).__name__}.to_tensorboard"
    try:
        from tensorboard.plugins.hparams import api_pb2, summary_v2  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        rule = f"{owner} needs tensorboard, which is not installed"
        raise ModuleNotFoundError(f"{rule}. Try pip install tensorboard.", name=error.name) from error
    if not hasattr(search, "cv_results_"):
        raise ValueError(f"{owner}: search must be fitted. Call fit before.")
    results, folder = search.cv_results_, Path(directory)
    known = [summary_v2.HParam(name.removeprefix("param_")) for name in results if name.startswith("param_")]
    metrics = [name for name in results if name.startswith("mean_test_")]
    _write(folder, [summary_v2.hparams_config_pb(known, [summary_v2.Metric(metric) for metric in metrics])])
    for row, params in enumerate(results["params"]):
        scores = {metric: float(results[metric][row]) for metric in metrics}
        status = api_pb2.STATUS_SUCCESS if all(map(np.isfinite, scores.values())) else api_pb2.STATUS_FAILURE
        begin = summary_v2.hparams_pb({name: _plain(value) for name, value in params.items()}, trial_id=str(row))
        _write(folder / f"candidate-{row}", [begin, *map(_scalar, scores, scores.values()), _end(status)])


def _write(folder, summaries):
    from tensorboard.compat.proto import event_pb2  # pyright: ignore[reportMissingImports]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # pyright: ignore[reportMissingImports]

    writer = EventFileWriter(str(folder))
    for summary in summaries:
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=0, summary=summary))
    writer.close()


def _scalar(tag, value):
    from tensorboard.compat.proto import summary_pb2  # pyright: ignore[reportMissingImports]

    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)])


def _end(status):
    """The record without which the plugin takes a run for one that still goes on."""
    from tensorboard.compat.proto import summary_pb2  # pyright: ignore[reportMissingImports]
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2  # pyright: ignore[reportMissingImports]

    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=info))
    value = summary_pb2.Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=data)
    return summary_pb2.Summary(value=[value])


def _plain(value):
    """The value as the plugin takes it: bool, number or text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, bool | int | float | str) else str(value)
