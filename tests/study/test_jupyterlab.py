"""Tweaking as a person does it: JupyterLab in a browser; open, change a number, run all, save."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support import lab

pytestmark = pytest.mark.slow
NAME = "02_factors"


@pytest.fixture
def pictures(tmp_path):
    """Where screenshots go: MSIF_PICTURES, to look at them, or away."""
    folder = Path(os.environ.get("MSIF_PICTURES", tmp_path / "pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digests(*folders):
    """{path: SHA-256} of all files in some folders."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_number_is_changed_run_saved_and_changed_back(checkout, browser, tmp_path, pictures):
    command = [sys.executable, "-m", "msif.study.pipeline.run", "01_testbed", "tiny"]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run(command, cwd=checkout, env=env, check=True, capture_output=True)
    before = digests(checkout / "results" / "tiny", checkout / "reports")
    source = checkout / "notebooks" / f"{NAME}.ipynb"
    committed = source.read_bytes()

    def status():
        command = ["git", "-C", checkout, "status", "--porcelain"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert status() == ""
    with lab.server(checkout, tmp_path) as address:
        person = lab.Person(browser, pictures)
        person.opens(address, NAME)
        person.picture("1_opened")
        person.saves(source)
        assert source.read_bytes() == committed

        person.writes("documents = ", "1000", "128")
        person.writes("batch_size = ", "64", "32")
        person.picture("2_edited")
        person.runs_all()
        own = checkout / "results" / "by-hand" / "tiny" / NAME
        metrics = own / "reports" / "factors.metrics.json"
        lab.until(metrics.exists, f"{metrics}", 300)
        person.idle()
        person.saves(source)
        person.picture("3_run_and_saved")
        told = person.outputs()[0]
        assert told.startswith("Run by hand: results/tiny and reports/tiny stay as they are.")
        assert f"writes to   results/by-hand/tiny/{NAME}" in told
        assert "reads       results/tiny/testbed" in told
        assert "documents   128  params.yaml: 1000" in told
        assert "-S tiny.factors.documents=128" in told

        assert digests(checkout / "results" / "tiny", checkout / "reports") == before
        nb = nbformat.read(source, as_version=4)
        assert "documents = 128 " in nb.cells[1].source
        assert not any(c.outputs or c.execution_count for c in nb.cells if c.cell_type == "code")
        assert status() == f" M notebooks/{NAME}.ipynb\n"
        kept = nbformat.read(own / f"{NAME}.ipynb", as_version=4)
        assert kept.cells[2].outputs[0].text.strip() == told.strip()

        laws = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/study"]
        laws += ["-k", "test_study.py or test_params or test_sources", "-m", "not slow"]
        held = subprocess.run(laws, cwd=checkout, env=env, capture_output=True, text=True)
        assert held.returncode == 0, held.stdout[-3000:]

        person.writes("documents = ", "128", "1000")
        person.writes("batch_size = ", "32", "64")
        person.saves(source)
        person.picture("4_changed_back")
        assert person.dialogs() == []
    assert source.read_bytes() == committed and status() == ""
