"""Long work is done once for its inputs, and never found half done."""

import ast

import grimp
import pytest

from msif.study import scratch


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counted(calls):
    def make(folder):
        calls.append(folder)
        (folder / "x").write_text("done")

    make.__module__ = "msif.study.metrics"
    return make


def test_work_is_done_once_for_one_key_and_anew_for_another(study):
    calls = []
    first = scratch.built("kind", {"a": 1}, counted(calls))
    assert scratch.built("kind", {"a": 1}, counted(calls)) == first and len(calls) == 1
    assert scratch.built("kind", {"a": 2}, counted(calls)) != first and len(calls) == 2


def test_work_that_dies_is_not_found(study):
    def dies(folder):
        (folder / "x").write_text("half")
        raise KeyboardInterrupt

    dies.__module__ = "msif.study.metrics"
    with pytest.raises(KeyboardInterrupt):
        scratch.built("kind", 1, dies)
    calls = []
    assert (scratch.built("kind", 1, counted(calls)) / "x").read_text() == "done" and calls


@pytest.mark.parametrize(
    "module", ["msif.study.beds.testbed", "msif.core.store", "msif.study.exact.accuracy"]
)
def test_no_module_that_computes_escapes_the_digest(module, monkeypatch):
    """The digest reads every module that an independent tool finds imported, directly or not."""
    read, source_of = [], scratch.source_of
    monkeypatch.setattr(
        scratch, "_without_prose", lambda tree: read.append(ast.unparse(tree)) or tree
    )
    scratch.code_digest.__wrapped__(module)  # not what it remembers
    expected = {module} | _upstream(module)
    assert sorted(read) == sorted(
        ast.unparse(ast.parse(source_of(x).read_text())) for x in expected
    )


def _upstream(module):
    """What a module imports, directly or not, but for what only says where long work lies,
    and packages, which hold nothing."""
    graph, found, todo = grimp.build_graph("msif"), set(), {module}
    while todo:
        found |= (
            new := graph.find_modules_directly_imported_by(todo.pop()) - found - scratch.UNCOUNTED
        )
        todo |= new
    return {x for x in found if scratch.source_of(x).is_file()} - {module}


@pytest.mark.filterwarnings("ignore:.*was edited after this process had begun")
def test_an_edited_metric_is_another_digest_and_an_edited_docstring_is_not(monkeypatch):
    """`accuracy.toy_study` keeps what `metrics.spearman` gave:
    an edit of that must not find it again."""
    module, metrics = "msif.study.exact.accuracy", scratch.source_of("msif.study.metrics")
    before, source = scratch.code_digest(module), scratch.SOURCES[metrics]

    def digest(edited):
        assert edited != source
        monkeypatch.setitem(scratch.SOURCES, metrics, edited)
        return scratch.code_digest.__wrapped__(module)

    assert digest(source.replace("axis=1), rankdata(b", "axis=1), -rankdata(b")) != before
    prose = source.replace('"""Rank correlation', '"""In other words: rank correlation')
    assert digest(prose + "\n# an afterthought\n") == before


def test_the_digest_is_of_the_code_that_runs_not_of_what_is_edited_meanwhile(monkeypatch):
    """Else an old formula's numbers would be kept as the new one's; and the edit is told."""
    before = scratch.code_digest("msif.study.metrics")
    monkeypatch.setattr(scratch.Path, "read_text", lambda *_: "edited = True")
    with pytest.warns(UserWarning, match=r"metrics.py was edited after this process had begun"):
        assert scratch.code_digest.__wrapped__("msif.study.metrics") == before
