"""`python -m kopt` as a user calls it: refusals before anything is trained, and the whole job on small data."""

import re
import subprocess
import sys

import joblib
import numpy as np
import pytest

from kopt.__main__ import main

pd = pytest.importorskip("pandas")


@pytest.fixture
def table(tmp_path):
    """Flowers: two numbers and a word decide a kind; a number to predict; a gap here and there."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "length": rng.normal(size=60),
            "width": rng.normal(size=60),
            "soil": rng.choice(["clay", "sand"], 60),
            "wild": rng.choice([True, False], 60),
            "id": [f"flower {i}" for i in range(60)],
        }
    )
    rows["kind"] = np.where(rows.length + (rows.soil == "clay") > 0.5, "rose", "tulip")
    rows["height"] = 1000 + 100 * rows.width + 50 * (rows.soil == "clay")
    rows["same"] = 1
    rows.loc[3, "length"] = rows.loc[5, "soil"] = rows.loc[7, "kind"] = None
    rows.to_csv(file := tmp_path / "flowers.csv", index=False)
    return file


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--csv no.csv --target kind", "--csv names a file that does not exist: no.csv."),
        (
            "--csv {table} --target colour",
            "--target must be a column of .*, got 'colour'; it has length, width, soil, ",
        ),
        ("--csv {table} --target same", "--target must be a column with at least two values, and 'same' has 1."),
        ("--csv {table} --target id", "--target must be a column whose values recur or are numbers, and 'id' has 60 "),
        ("--csv {table}", "--csv and --target go together: "),
        ("--csv {folder} --target kind", "--csv names a file that is no table: "),
        ("--csv {few} --target kind", "--csv must have at least 4 rows for each value of 'kind', and .* has 2."),
        ("--csv {few} --target height", "--csv must have at least 40 rows, and .* has 6."),
        ("--csv {alone} --target kind", "--csv must have columns besides 'kind' to predict it from, and .* has none."),
        ("--seed -1", r"--seed must be in \[0, 2\*\*32\), got -1."),
        ("--output no/file", "--output must be a file in a folder that can be written, got no/file."),
        ("--output {folder}", "--output must be a file in a folder that can be written, got "),
        ("--trials 0", "--trials must be 1 or more, got 0."),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(arguments, sentence, table, tmp_path, capsys):
    rows = pd.read_csv(table)
    rows[8:14].to_csv(few := tmp_path / "few.csv", index=False)
    rows[["kind"]].to_csv(alone := tmp_path / "alone.csv", index=False)
    files = dict(table=table, folder=tmp_path, few=few, alone=alone)
    assert main(arguments.format(**files).split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.match("kopt: " + sentence, told.err)
    assert told.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    ["--target kind --method random", "--target height --method grid", "--target kind --strategy mirrored --seed 3"],
)
def test_a_table_of_ones_own(arguments, table, tmp_path, capsys):
    output = tmp_path / "pipeline.joblib"
    assert main([*arguments.split(), "--csv", str(table), "--trials", "2", "--output", str(output)]) == 0
    told = capsys.readouterr().out
    assert f"{8 if 'grid' in arguments else 2} candidates, 3 folds each" in told
    assert re.search(r"\n  \d\.\d{4}  the chosen pipeline\n  -?\d\.\d{4}  a default Keras Adam network\n", told)
    rows = pd.read_csv(table).dropna(subset="kind")
    target = "kind" if "kind" in arguments else "height"
    pipeline = joblib.load(output)
    assert pipeline.score(rows.drop(columns=target), rows[target]) > 0.7


@pytest.mark.slow
def test_the_main_job_is_quiet(tmp_path):
    command = [sys.executable, "-m", "kopt", "--trials", "1", "--method", "random"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert run.stderr == ""
    assert "digits: 1437 rows to learn from, 360 held out; random search" in run.stdout
    assert (tmp_path / "kopt-pipeline.joblib").exists()
