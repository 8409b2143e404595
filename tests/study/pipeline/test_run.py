"""The runner refuses bad names before anything runs, and equal runs leave equal bytes."""

import json
import os
import subprocess
import sys

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from support import ROOT

from msif.study.notebook import PIPELINE
from msif.study.pipeline import run

OTHERWISE = (
    "01_demo: this run takes params.yaml, tiny.demo, not what the notebook's cell says: n = 1, "
    "there 3. To keep that: edit tiny.demo in params.yaml, then: make study; or, beside the study: "
    "dvc exp run --temp -S tiny.demo.n=1 demo@tiny"
)
BEGIN = "from msif.study import notebook\nnotebook.begin('01_demo', globals())"
CODE = """
import sys
from pathlib import Path
Path("ran").touch()
block = b"x" * 2**28  # 256 MB
print("n =", n); print("half", file=sys.stderr, flush=True); print(profile)
if n < 0:
    raise ArithmeticError("a negative n")
"""

PARAMS = """# what runs
profiles: [tiny]  # more?

tiny:
  demo: {n: 3}
bad: {demo: {n: 3, width: 4}}
none: {}
neg: {demo: {n: -1}, testbed: {}}
sure: {testbed: {}, retraining: {}}
told: {case_studies: {}}
text: {demo: {n: three}}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of one notebook with parameters `n` and `profile`; the working directory is in it."""
    cells = [
        new_markdown_cell("# Demo", id="0"),
        new_code_cell("n = 1\nprofile = 'tiny'", id="1", metadata={"tags": ["parameters"]}),
        new_code_cell(BEGIN, id="begin"),
        new_code_cell(CODE, id="2"),
    ]
    (tmp_path / "notebooks").mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks/01_demo.ipynb")
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


@pytest.mark.parametrize(
    "name, profile, says",
    [
        ("02_nope", "tiny", r"unknown notebook '02_nope'; there are: 01_demo"),
        (
            "01_demo",
            "huge",
            r"unknown profile 'huge'; there are: tiny, bad, none, neg, sure, told, text",
        ),
        (
            "01_demo",
            "bad",
            r"unknown parameter of 01_demo .*bad\.demo.* 'width'; there are: n, profile",
        ),
        ("01_demo", "text", r"params.yaml: text.demo.n is 'three'; expected a whole number"),
        ("01_demo", "none", r"unknown section of the profile 'none' .* 'demo'; there are: none"),
    ],
)
def test_a_bad_name_is_refused_before_anything_runs(study, name, profile, says):
    with pytest.raises(ValueError, match=says):
        run.run(name, profile)
    assert not (study / "notebooks/ran").exists() and not (study / "results").exists()


def test_the_command_says_so_in_one_line():
    command = [sys.executable, "-m", "msif.study.pipeline.run", "01_testbed", "huge"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.startswith("msif.study.pipeline.run: unknown ") and done.stderr.count("\n") == 1
    )


def test_equal_runs_leave_equal_bytes_and_their_cost(study, capfd):
    first = run.run("01_demo", "tiny").read_bytes()
    shown = capfd.readouterr().err
    assert "half" in shown and "WARNING" not in shown  # progress is shown while it runs ...
    again = run.run("01_demo", "tiny")
    assert again == study / "results/tiny/notebooks/01_demo.ipynb" and again.read_bytes() == first
    nb = nbformat.reads(first.decode(), as_version=4)
    assert [o.text for o in nb.cells[-1].outputs] == ["n = 3\ntiny\n"]  # ... and not kept
    assert "papermill" not in first.decode()
    assert nb.cells[-2].source == BEGIN and nb.cells[-2].outputs == []  # no person runs it ...
    assert PIPELINE not in os.environ  # ... which this process does not claim for what follows

    # What it cost, in a process of its own: a child begins as large as its parent, and this one
    # has run other tests.
    command = [sys.executable, "-m", "msif.study.pipeline.run", "01_demo", "tiny"]
    alone = subprocess.run(command, cwd=study, check=True, capture_output=True, text=True)
    assert alone.stdout.splitlines()[:2] == ["01_demo for tiny", OTHERWISE]
    cost = json.loads((study / "scratch/timings/tiny/01_demo.json").read_text())
    assert (
        cost["seconds"] > 0 and 256 < cost["peak_mb"] < 1024
    )  # the block, and what an idle kernel has
    run.record("tiny", "02_other", 12.34, 567.8)
    table = run.timings("tiny").splitlines()
    assert len(table) == 3 and table[2].split() == ["tiny", "02_other", "12.3", "568"]


def test_a_failing_notebook_is_kept_and_named(study):
    with pytest.raises(papermill.PapermillExecutionError, match="a negative n") as error:
        run.run("01_demo", "neg")
    kept = study / "scratch/executed/neg/01_demo.ipynb"
    assert str(kept) in error.value.__notes__[0] and "a negative n" in kept.read_text()
    assert not (study / "results/neg/notebooks/01_demo.ipynb").exists()
    lines = run.told(error.value).splitlines()
    assert lines[0] == "cell [4] failed:" and "line 7: raise ArithmeticError" in lines[1]
    assert lines[2] == "ArithmeticError: a negative n" and str(kept) in lines[3]
    assert len(lines) == 4


def test_an_error_deep_inside_is_told_by_its_first_and_last_step():
    frame = "\x1b[1mFile /lib/{0}.py:{1}\x1b[0m, in {0}(x)\n 1 def\n----> {1} {0}()\n 9 end\n"
    error = papermill.PapermillExecutionError.__new__(papermill.PapermillExecutionError)
    error.exec_count, error.ename, error.evalue = 3, "KeyError", "x" * 9000
    cell = (
        "KeyError  Traceback (most recent call last)\nCell In[3], line 2\n      1 a\n----> 2 f(1)\n"
    )
    error.traceback = [cell, *(frame.format(name, n) for n, name in enumerate("ghij", 5))]
    first, start, middle, end, *message = run.told(error).splitlines()
    assert (first, start, middle) == ("cell [3] failed:", "    Cell In[3], line 2: f(1)", "    …")
    assert end == "    File /lib/j.py:8: j()" and len(message) == 1 and len(message[0]) < 1600


def test_what_is_no_failing_cell_is_told_in_one_line():
    assert run.told(OSError(28, "No space left")) == "OSError: [Errno 28] No space left"
