"""Long work is done once for its inputs, and never found half done."""
import test_study

import pytest

from msif import scratch


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def counted(calls):
    def make(folder):
        calls.append(folder)
        (folder / "x").write_text("done")
    make.__module__ = "msif.metrics"
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
    dies.__module__ = "msif.metrics"
    with pytest.raises(KeyboardInterrupt):
        scratch.built("kind", 1, dies)
    calls = []
    assert (scratch.built("kind", 1, counted(calls)) / "x").read_text() == "done" and calls


@pytest.mark.parametrize("module", ["testbed", "store", "tracing"])
def test_no_module_that_computes_escapes_the_digest(module, monkeypatch):
    """The digest reads the imports that Python's own parser sees, presentation aside."""
    seen = []
    original = scratch._imports
    monkeypatch.setattr(scratch, "_imports", lambda source: seen.append(source) or original(source))
    scratch.code_digest(module)
    expected = {f"msif/{module}.py"} | {p for p in test_study.closure({f"msif/{module}.py"})}
    kept = {p for p in expected if p.removeprefix("msif/").removesuffix(".py") not in scratch.PRESENTATION}
    assert set(seen) == {(test_study.ROOT / p).read_text() for p in kept}
