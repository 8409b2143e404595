"""A claim is what a checked cell prints: kept without all else, and compared by cell."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from msif.study.pipeline import claims


@pytest.fixture
def executed(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "tiny" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_demo.ipynb").touch()

    def write(claim, number):
        def cell(name, text, *tags):
            output = new_output("stream", text=text)
            return new_code_cell("x", id=name, outputs=[output], metadata={"tags": list(tags)})

        cells = [cell("free", number), cell("claim", claim, claims.CHECKED)]
        nbformat.write(new_notebook(cells=cells), folder / "01_demo.ipynb")

    write("above: True\n", "0.123\n")
    return write


def test_only_what_is_claimed_is_kept_and_compared(executed):
    claims.write()
    kept = (claims.folder() / "01_demo.ipynb").read_text()
    assert "above: True" in kept and "0.123" not in kept
    executed("above: True\n", "0.124\n")
    assert claims.differences() == []
    executed("above: False\n", "0.123\n")
    assert claims.differences() == [
        "01_demo, cell claim: claimed\nabove: True\n\nprinted\nabove: False\n"
    ]


def test_claims_that_are_not_there_do_not_hold(executed, tmp_path):
    with pytest.raises(ValueError, match="has nothing; expected one for each notebook"):
        claims.differences()
    claims.write()
    (tmp_path / "notebooks" / "02_more.ipynb").touch()
    with pytest.raises(ValueError, match="has 01_demo; expected"):
        claims.differences()
