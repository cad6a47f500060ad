"""Every Python block of the README and of the docs runs, in order, and so does every example."""

import json
import pathlib
import re
import runpy
import sys
import textwrap
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SMALL = {
    "autoencoder_kfac.py": ["--steps", "10"],
    "calibration.py": ["--epochs", "4", "--rows", "1000"],
    "early_stopping.py": ["--epochs", "15"],
    "large_batch_lbfgs.py": ["--passes", "20"],
    "larger_than_memory.py": ["--rows", "20000", "--epochs", "1"],
    "little_data.py": ["--epochs", "8", "--seeds", "1"],
    "mixed_columns.py": ["--epochs", "4"],
    "noisy_labels.py": ["--epochs", "8"],
    "several_workers.py": ["--epochs", "2"],
    "tune_pipeline.py": ["--candidates", "5"],
}
"""Arguments with which an example takes a few seconds, where without any it takes more."""
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.slow


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=name_of)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    main = types.ModuleType("__main__")  # a real module, so that what a block defines can be pickled
    monkeypatch.setitem(sys.modules, "__main__", main)
    for block in BLOCK.finditer(text):
        first_line = text.count("\n", 0, block.start("code"))
        code = "\n" * first_line + textwrap.dedent(block["code"])
        exec(compile(code, page, "exec"), vars(main))


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(example), *SMALL.get(example.name, [])])
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines = [line for line in cell["source"] if not line.startswith("!")]  # a shell's
            exec(compile("".join(lines), notebook, "exec"), names)
    assert names["difference"] < 1e-5


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
