"""The runner refuses bad names before anything runs, and equal runs leave equal bytes."""

import json
import subprocess
import sys

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from support import ROOT

from msif.core import extras
from msif.study import paths
from msif.study.pipeline import run

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
validated: []
studied: []

tiny:
  demo: {n: 3}
bad: {demo: {n: 3, width: 4}}
none: {}
neg: {demo: {n: -1}, testbed: {}}
sure: {testbed: {}, retraining: {}}
told: {case_studies: {}}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of one notebook with the parameters `n` and `profile`; the working directory is inside it."""
    cells = [
        new_markdown_cell("# Demo", id="0"),
        new_code_cell("n = 1\nprofile = 'tiny'", id="1", metadata={"tags": ["parameters"]}),
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
        ("01_demo", "huge", r"unknown profile 'huge'; there are: tiny, bad, none, neg, sure, told"),
        (
            "01_demo",
            "bad",
            r"unknown parameter of 01_demo .*bad\.demo.* 'width'; there are: n, profile",
        ),
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
    assert again == study / "results/tiny/01_demo.ipynb" and again.read_bytes() == first
    nb = nbformat.reads(first.decode(), as_version=4)
    assert [o.text for o in nb.cells[-1].outputs] == ["n = 3\ntiny\n"]  # ... and not kept
    assert "papermill" not in first.decode()

    # What it cost, in a process of its own: a child begins as large as its parent, and this one has run other tests.
    subprocess.run(
        [sys.executable, "-m", "msif.study.pipeline.run", "01_demo", "tiny"],
        cwd=study,
        check=True,
        capture_output=True,
    )
    cost = json.loads((study / "results/tiny/timings.json").read_text())["01_demo"]
    assert (
        cost["seconds"] > 0 and 256 < cost["peak_mb"] < 1024
    )  # the block, and what an idle kernel has
    run.record("tiny", "02_other", 12.34, 567.8)
    assert set(json.loads((study / "results/tiny/timings.json").read_text())) == {
        "01_demo",
        "02_other",
    }
    table = run.timings("tiny").splitlines()
    assert len(table) == 3 and table[2].split() == ["tiny", "02_other", "12.3", "568"]


def test_a_failing_notebook_is_kept_and_named(study):
    with pytest.raises(papermill.PapermillExecutionError, match="a negative n") as error:
        run.run("01_demo", "neg")
    kept = study / "scratch/executed/neg/01_demo.ipynb"
    assert str(kept) in error.value.__notes__[0] and "a negative n" in kept.read_text()
    assert not (study / "results/neg/01_demo.ipynb").exists()


def test_enabling_a_profile_changes_one_line_once(study):
    before = (study / "params.yaml").read_text()
    assert "profiles: [tiny, neg]" in run.enable("neg")
    after = (study / "params.yaml").read_text()
    assert after == before.replace("[tiny]", "[tiny, neg]")
    assert "already" in run.enable("neg") and (study / "params.yaml").read_text() == after
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        run.enable("huge")


def test_a_profile_that_can_be_validated_is(study):
    assert run.enable("sure").count("\n") == 1
    after = (study / "params.yaml").read_text()
    assert "profiles: [tiny, sure]" in after and "validated: [sure]" in after


def test_a_profile_of_case_studies_alone_runs_those_alone(study):
    run.enable("told")
    after = (study / "params.yaml").read_text()
    assert "profiles: [tiny]" in after and "validated: []" in after and "studied: [told]" in after


def test_timings_before_any_run_say_what_to_do(study):
    assert run.timings() == "nothing has run yet; start with: make study"


def test_folders_are_found_from_inside_a_study_alone(study, tmp_path_factory, monkeypatch):
    assert paths.root() == study and paths.scratch("a", "b").parent == study / "scratch/a"
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(
        FileNotFoundError, match="no dvc.yaml in .*elsewhere.* checkout of the study"
    ):
        paths.root()


def test_a_missing_package_names_the_extra():
    assert extras.need("json") is json
    with pytest.raises(ImportError, match=r'no_such_package.*pip install "\.\[study\]"'):
        extras.need("no_such_package")
