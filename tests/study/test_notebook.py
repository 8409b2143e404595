"""Who runs a notebook decides where it writes; what others have made is read where it is."""

import sys
from types import SimpleNamespace

import pytest

from msif.study import notebook, paths

PARAMS = """profiles: [tiny]
tiny:
  first: {n: 3}
  second: {n: 1, pair: {rate: 0.1, seeds: [0]}, text: null}
mine: {second: {n: 2}}
none: {}
"""
DVC = """stages:
  first: {do: {deps: [notebooks/01_first.ipynb]}}
  second: {do: {deps: [msif/core/, "results/${item}/first/"]}}
"""
SECOND = {"profile": "tiny", "n": 1, "pair": {"rate": 0.1, "seeds": [0]}, "text": None}


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    """A study of two notebooks, the second of which reads what the first has made."""
    (tmp_path / "notebooks").mkdir()
    for name in ("01_first", "02_second", "02_second-Copy1", "Untitled"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "results" / "tiny" / "first" / "seed-0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv(notebook.PIPELINE, raising=False)
    yield tmp_path
    paths.begin(None)


@pytest.fixture
def pipeline(monkeypatch):
    monkeypatch.setenv(notebook.PIPELINE, "1")


def places(study):
    """Where a notebook's writes to its own part, to reports and to a loose file go."""
    own = [paths.results("tiny", "second", "x"), paths.reports("tiny", "x.json")]
    own.append(paths.results("tiny", "ratios.json"))
    assert all(path.parent.is_dir() for path in own)
    return [path.relative_to(study).as_posix() for path in own]


def test_by_hand_a_notebook_writes_to_a_place_of_its_own_and_reads_what_is_finished(study):
    notebook.begin("02_second", SECOND)
    there = "results/by-hand/tiny/02_second"
    assert places(study) == [f"{there}/{x}" for x in ("second/x", "reports/x.json", "ratios.json")]
    assert paths.results("tiny", "first", "seed-0") == study / "results/tiny/first/seed-0"
    assert [x.name for x in (study / "results/tiny").iterdir()] == ["first"]


def test_the_pipelines_notebook_writes_to_the_profile_and_prints_nothing(study, pipeline, capsys):
    notebook.begin("02_second", SECOND | {"n": 5})
    there = "results/tiny"
    assert places(study) == [f"{there}/{x}" for x in ("second/x", "reports/x.json", "ratios.json")]
    assert paths.results("tiny", "first", "seed-0") == study / "results/tiny/first/seed-0"
    assert capsys.readouterr().out == ""


def test_where_no_notebook_has_begun_nothing_is_redirected(study):
    assert paths.results("tiny", "second") == study / "results/tiny/second"
    assert paths.results("tiny", "first", "seed-7") == study / "results/tiny/first/seed-7"


def test_a_notebook_that_has_not_begun_overwrites_nothing(monkeypatch):
    """As when a person runs a cell in the middle first."""
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=True))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    with pytest.raises(RuntimeError, match="run the first cells: notebook.begin"):
        paths.reports("tiny", "x.json")
    notebook.begin("02_second", SECOND)
    assert paths.reports("tiny", "x.json").parent.is_dir()


def test_a_notebook_by_hand_says_where_it_writes_and_what_it_reads(study, capsys):
    notebook.begin("02_second", SECOND)
    own = "results/by-hand/tiny/02_second"
    assert capsys.readouterr().out.splitlines() == [
        "Run by hand: results/tiny and reports/tiny stay as they are.",
        f"  writes to   {own}; what JupyterLab saves has its outputs there, too",
        "  reads       results/tiny/first",
        "  parameters  those of params.yaml, tiny.second",
    ]


def test_a_notebook_by_hand_says_which_leaves_differ_and_how_that_would_last(study, capsys):
    notebook.begin("02_second", SECOND | {"pair": {"rate": 2.5e-7, "seeds": [0]}, "text": "a b"})
    assert capsys.readouterr().out.splitlines()[3:] == [
        "  parameters  differ from params.yaml, tiny.second",
        "    pair.rate  2.5e-07  params.yaml: 0.1",
        "    text       'a b'    params.yaml: None",
        "  to keep     edit tiny.second in params.yaml, then: make study",
        "              or, beside the study: dvc exp run --temp -S tiny.second.pair.rate=2.5e-07 "
        "-S 'tiny.second.text=\"a b\"' second@tiny",
    ]


def test_a_profile_that_names_some_parameters_leaves_the_others_to_the_notebook(study, capsys):
    (study / "results" / "mine" / "first").mkdir(parents=True)
    notebook.begin("02_second", SECOND | {"profile": "mine", "n": 7})
    printed = capsys.readouterr().out
    assert "n  7  params.yaml: 2" in printed and "rate" not in printed
    assert "edit mine.second in params.yaml, then: make study PROFILE=mine" in printed


@pytest.mark.parametrize(
    "profile, says",
    [
        ("tyni", "unknown profile 'tyni'; there are: tiny, mine, none"),
        ("../tiny", "unknown profile '../tiny'; there are: tiny, mine, none"),
        ("none", "unknown section of the profile 'none' in params.yaml: 'second'; there are: none"),
    ],
)
def test_a_profile_that_is_not_there_is_refused_with_those_that_are(profile, says):
    with pytest.raises(ValueError) as error:
        notebook.begin("02_second", SECOND | {"profile": profile})
    assert str(error.value) == says


ALONE = "python -m msif.study.pipeline.run 01_first tiny"


def test_what_is_not_made_yet_is_named_with_who_makes_it(study, monkeypatch):
    (study / "results" / "tiny" / "first").rename(study / "elsewhere")
    for env, more in (("1", "$"), ("", ", or notebooks/01_first.ipynb by hand$")):
        monkeypatch.setenv(notebook.PIPELINE, env)
        with pytest.raises(FileNotFoundError, match=f"`make study PROFILE=tiny`.*`{ALONE}`{more}"):
            notebook.begin("02_second", SECOND)


@pytest.mark.parametrize("env", ["1", ""])
def test_a_piece_that_the_profile_does_not_have_is_a_matter_of_its_parameters(monkeypatch, env):
    monkeypatch.setenv(notebook.PIPELINE, env)
    notebook.begin("02_second", SECOND)
    says = r"results/tiny/first/seed-1 is not there: .*01_first.*tiny\.first in params\.yaml"
    with pytest.raises(FileNotFoundError, match=says):
        paths.results("tiny", "first", "seed-1")


def test_by_hand_the_pipelines_part_comes_first_and_then_one_made_by_hand(study, capsys):
    notebook.begin("01_first", {"profile": "tiny", "n": 3})
    paths.results("tiny", "first", "seed-0").mkdir()
    notebook.begin("02_second", SECOND)
    assert paths.results("tiny", "first", "seed-0") == study / "results/tiny/first/seed-0"
    (study / "results" / "tiny" / "first").rename(study / "elsewhere")
    capsys.readouterr()
    notebook.begin("02_second", SECOND)
    own = "results/by-hand/tiny/01_first/first"
    assert f"  reads       {own}\n" in capsys.readouterr().out
    assert paths.results("tiny", "first", "seed-0") == study / own / "seed-0"


def test_the_pipeline_never_reads_what_was_made_by_hand(study, monkeypatch):
    notebook.begin("01_first", {"profile": "tiny", "n": 3})
    paths.results("tiny", "first", "seed-0").mkdir()
    (study / "results" / "tiny" / "first").rename(study / "elsewhere")
    monkeypatch.setenv(notebook.PIPELINE, "1")
    with pytest.raises(FileNotFoundError, match="results/tiny/first is not there"):
        notebook.begin("02_second", SECOND)


def test_copies_and_other_notebooks_are_not_the_studys():
    assert paths.notebooks() == ["01_first", "02_second"]


@pytest.mark.parametrize("place", [paths.results, paths.reports, paths.published, paths.scratch])
@pytest.mark.parametrize("profile", ["../../evil", "/evil", "a/../..", "", "."])
def test_no_name_leads_out_of_the_study(study, place, profile):
    before = sorted(study.parent.iterdir())
    with pytest.raises(ValueError, match="leads elsewhere"):
        place(profile, "x")
    assert sorted(study.parent.iterdir()) == before
