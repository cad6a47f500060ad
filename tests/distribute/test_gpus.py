"""GPUs shared out: this machine needs none, for claims are of files, and TensorFlow's answers are the test's."""

import os
import subprocess
import sys

import joblib
import numpy as np
import pytest
import tensorflow as tf
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import check_scoring
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import kopt
from kopt.distribute import claims, gpus
from kopt.search.engines import Suggestion
from kopt.search.evaluation import Task, evaluate
from kopt.search.networks import give_gpu, number_of_jobs

CLAIMER = """
import pathlib, sys
from kopt.distribute.claims import claim
print(claim([0, 1], pathlib.Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    """A machine with two GPUs, and what is told to TensorFlow of them."""
    told = []
    devices = [tf.config.PhysicalDevice(f"/physical_device:GPU:{i}", "GPU") for i in range(2)]
    listed = tf.config.list_physical_devices
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices if kind == "GPU" else listed(kind))
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *told_of: told.append(("visible", *told_of)))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *told_of: told.append(("grows", *told_of)))
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    gpus.own.cache_clear()
    yield devices, told
    gpus.own.cache_clear()
    claims._held.close()


def test_processes_claim_different_devices_and_a_killed_one_gives_its_back(tmp_path):
    def claimer():
        command = [sys.executable, "-c", CLAIMER, str(tmp_path / "claims")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return process, int(process.stdout.readline())

    first, second, _ = claimers = [claimer() for _ in range(3)]
    try:
        assert [device for _, device in claimers] == [0, 1, 0]  # the third finds none free, and shares
        second[0].kill()
        second[0].wait()
        claimers.append(claimer())
        assert claimers[-1][1] == 1
        first[0].kill()
        first[0].wait()
        claimers.append(claimer())
        assert claimers[-1][1] == 0
    finally:
        for process, _ in claimers:
            process.kill()
            process.communicate()


def test_a_process_sees_its_own_gpu_alone(two_gpus, monkeypatch):
    devices, told = two_gpus
    monkeypatch.setattr(gpus, "tensorflow_has_started", lambda: False)
    networks = kopt.KerasClassifier(), kopt.KerasRegressor()
    give_gpu(networks)
    assert told == [("visible", devices[0], "GPU"), ("grows", devices[0], True)]
    assert [network.device for network in networks] == [None, None]  # there is no other


def test_where_tensorflow_has_started_networks_are_told_the_device(two_gpus, monkeypatch, tmp_path):
    _, told = two_gpus
    monkeypatch.setattr(gpus, "tensorflow_has_started", lambda: True)
    claims.claim([0], tmp_path / f"kopt-gpus-{os.getuid()}")  # as if it were somebody else
    asked = {}, {"device": "CPU"}, {"strategy": "mirrored"}
    networks = [kopt.KerasClassifier(**each) for each in asked]
    give_gpu(networks)
    assert [network.device for network in networks] == ["GPU:1", "CPU", None]
    assert told == []


def test_jobs_count_gpus_where_networks_train(two_gpus):
    network = make_pipeline(StandardScaler(), kopt.KerasClassifier())
    assert [number_of_jobs(n, network) for n in (None, 1, 5, -1, -2, -3)] == [1, 1, 5, 2, 1, 1]
    assert number_of_jobs(-1, LogisticRegression()) == joblib.cpu_count()


@pytest.mark.parametrize("is_worker", [False, True])
def test_a_worker_trains_on_its_gpu_and_the_searching_process_wherever_it_is(monkeypatch, is_worker):
    monkeypatch.setattr(gpus, "own", lambda: "CPU")
    devices, parent = [], 0 if is_worker else os.getpid()

    class Watched(kopt.KerasClassifier):
        def fit(self, X, y):
            devices.append(self.device)
            return super().fit(X, y)

    X, y = load_iris(return_X_y=True)
    options = dict(scorer=check_scoring(Watched()), fit_params={}, score_params={}, return_times=True, verbose=0)
    pipeline = make_pipeline(StandardScaler(), Watched(epochs=1))
    split = np.arange(100), np.arange(100, 150)
    for params in ({"watched__epochs": 2}, {"watched": Watched(epochs=1)}):
        evaluate(Task(Suggestion("0", params), clone(pipeline), options), 0, X, y, split, parent=parent)
    assert devices == ["CPU" if is_worker else None] * 2
