"""`python -m kopt launch` with scripts of no more than a few lines: who is started, told, ended and started again."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from kopt.__main__ import main

BEGIN = """
    import json, os, pathlib, signal, sys, time

    settings = json.loads(os.environ["TF_CONFIG"])
    index, workers = settings["task"]["index"], settings["cluster"]["worker"]
    starts = pathlib.Path("starts")  # a line each time that a worker starts
    with open(starts, "a") as file:
        file.write(json.dumps([index, workers, os.getpid()]) + "\\n")
"""


@pytest.fixture
def script(tmp_path):
    """Returns a function that writes a script, and starts it with the arguments of `launch` that it is given."""

    def start(code, *arguments, then=(), **environment):
        (tmp_path / "script.py").write_text(textwrap.dedent(BEGIN) + textwrap.dedent(code))
        command = [sys.executable, "-m", "kopt", "launch", *arguments, "script.py", *then]
        how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        return subprocess.Popen(command, env=os.environ | environment, **how)

    return start


@pytest.fixture
def starts(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "starts").read_text().splitlines()]


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_know_each_other_and_their_lines_are_told_apart(script, starts):
    code = "print('arguments', *sys.argv[1:]); print('to stderr', file=sys.stderr)"
    launched = script(code, "--workers", "3", then=["--workers", "7", "-x"])
    out, err = launched.communicate()
    assert launched.returncode == 0
    assert sorted(out.splitlines()) == [f"[{i}] arguments --workers 7 -x" for i in range(3)]
    assert {f"[{i}] to stderr" for i in range(3)} < set(err.splitlines())
    indices, clusters, _ = zip(*sorted(starts()))
    assert indices == (0, 1, 2)
    assert clusters[0] == clusters[1] == clusters[2]
    assert len(set(clusters[0])) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", address) for address in clusters[0])


@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("sys.exit(3)", "ended with code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    ],
)
def test_when_one_dies_all_are_started_again_at_other_addresses(script, starts, death, said):
    code = f"""
        if len(starts.read_text().splitlines()) <= 3:
            if index == 1:
                while len(starts.read_text().splitlines()) < 3: time.sleep(0.01)
                {death}
            time.sleep(60)
        print("done")
    """
    launched = script(code, "--workers", "3")
    out, err = launched.communicate(timeout=30)
    assert launched.returncode == 0
    assert sorted(out.splitlines()) == ["[0] done", "[1] done", "[2] done"]
    assert f"worker 1 {said}; all are started again (1 of 3)." in err
    first, second = sorted(starts()[:3]), sorted(starts()[3:])
    assert [index for index, *_ in second] == [0, 1, 2]
    assert set(first[0][1]).isdisjoint(second[0][1])
    assert not any(is_running(process) for *_, process in first)


@pytest.mark.parametrize(("death", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_after_so_many_deaths_the_code_is_that_of_the_last(script, starts, death, code):
    launched = script(f"if index == 1: {death}\ntime.sleep(60)", "--workers", "2", "--restarts", "1")
    _, err = launched.communicate(timeout=30)
    assert launched.returncode == code
    assert err.rstrip().endswith("; all end.")
    assert [index for index, *_ in sorted(starts())].count(1) == 2
    assert not any(is_running(process) for *_, process in starts())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("code", [143, 0])
def test_a_signal_lets_workers_end_in_order(script, starts, tmp_path, number, code):
    ending = f"""
        def end(*_):
            time.sleep(0.3)
            pathlib.Path(f"saved {{index}}").touch()
            sys.exit({code})
        signal.signal(signal.SIGTERM, end)
        pathlib.Path(f"ready {{index}}").touch()
        time.sleep(60)
    """
    launched = script(ending, "--workers", "2")
    wait_for(lambda: len(list(tmp_path.glob("ready *"))) == 2)
    launched.send_signal(number)
    _, err = launched.communicate(timeout=30)
    assert len(list(tmp_path.glob("saved *"))) == 2
    assert launched.returncode == (128 + number if code else 0)
    assert "started again" not in err
    assert len(starts()) == 2


def test_a_second_signal_ends_those_that_do_not_listen(script, starts, tmp_path):
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path(f'ready {index}').touch(); time.sleep(60)"
    launched = script(code, "--workers", "2")
    wait_for(lambda: len(list(tmp_path.glob("ready *"))) == 2)
    launched.terminate()
    time.sleep(0.5)
    assert launched.poll() is None
    launched.terminate()
    launched.communicate(timeout=30)
    assert launched.returncode == 143
    assert not any(is_running(process) for *_, process in starts())


def test_gpus_are_shared_out(script, tmp_path):
    code = "pathlib.Path(f'gpus {index}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    script(code, "--workers", "2", CUDA_VISIBLE_DEVICES="3,0,1").communicate()
    assert [(tmp_path / f"gpus {index}").read_text() for index in (0, 1)] == ["3", "0,1"]


def test_two_workers_do_not_get_one_gpu(script):
    _, err = script("", "--workers", "2", CUDA_VISIBLE_DEVICES="0").communicate()
    assert err.startswith("kopt: --workers must be at most the number of GPUs, which is 1, got 2. Set CUDA_VISIBLE_")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--workers 0 script.py", "--workers must be 1 or more, got 0."),
        ("--workers 2 --restarts -1 script.py", "--restarts must be 0 or more, got -1."),
        ("--workers 2 nowhere.py", "launch: the script must be a file, got nowhere.py."),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").touch()
    assert main(["launch", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"kopt: {sentence}\n"


def test_what_to_start_on_several_machines_is_printed_and_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my script.py").write_text("import os, sys; print(os.environ['TF_CONFIG'], *sys.argv[1:])")
    assert main(["launch", "--workers", "2", "--print", "my script.py", "--epochs", "3"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("TF_CONFIG=")]
    for number, line in enumerate(lines):
        line = line.replace(" python ", f" {sys.executable} ")
        setting, _, rest = subprocess.check_output(line, shell=True, text=True).rpartition("}")
        assert json.loads(setting + "}") == {
            "cluster": {"worker": ["machine0:2222", "machine1:2222"]},
            "task": {"type": "worker", "index": number},
        }
        assert rest.split() == ["--epochs", "3"]
    assert len(lines) == 2


def test_the_launch_itself_imports_no_tensorflow(tmp_path):
    (tmp_path / "script.py").touch()
    code = "import sys; from kopt.__main__ import main; print(main(sys.argv[1:]), *sys.modules)"
    command = [sys.executable, "-c", code, "launch", "--workers", "1", str(tmp_path / "script.py")]
    done, *modules = subprocess.check_output(command, text=True).split()
    assert done == "0"
    assert not {"tensorflow", "keras", "numpy"} & set(modules)
