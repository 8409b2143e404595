"""The whole study: chains side by side, dvc.lock put back, what failed is named."""

import subprocess

import pytest

from msif.study.pipeline import study

STAGES = """vars:
  - runs:
      one: [tiny]
      two: [tiny]
      three: [tiny]
      four: [tiny]
stages:
  one: {foreach: "${runs.one}", do: {cmd: x, deps: [a]}}
  two: {foreach: "${runs.two}", do: {cmd: x, deps: ["results/${item}/one/"]}}
  three: {foreach: "${runs.three}", do: {cmd: x, deps: [b]}}
  four:
    foreach: "${runs.four}"
    do: {cmd: x, deps: ["results/${item}/two/", "results/${item}/three/"]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for n, name in enumerate(("one", "two", "three", "four"), 1):
        (tmp_path / "notebooks" / f"0{n}_{name}.ipynb").touch()
    (tmp_path / "params.yaml").write_text(
        "profiles: [tiny]\ntiny: {one: {}, two: {}, three: {}, four: {}}\n"
    )
    (tmp_path / "dvc.yaml").write_text(STAGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "publish", lambda profile: None)
    monkeypatch.setattr(study.time, "sleep", lambda seconds: None)
    return tmp_path


def test_what_depends_on_each_other_is_one_chain_in_order(folder):
    assert study.chains() == [["one", "two", "three", "four"]]
    (folder / "dvc.yaml").write_text(STAGES.replace(', "results/${item}/three/"', ""))
    assert study.chains() == [["three"], ["one", "two", "four"]]


def fake(printed, code=0, wrote=None):
    """`subprocess.Popen` for a dvc that prints this; wrote: called, as what it changes."""

    class Dvc:
        def __init__(self, command, **options):
            self.stdout = iter(printed(command).splitlines(keepends=True))
            if wrote:
                wrote()

        def wait(self):
            return code

    return Dvc


@pytest.mark.parametrize("before", [None, "schema: '2.0'\n"])
@pytest.mark.parametrize("record", [False, True])
def test_the_lock_is_put_back_unless_it_is_to_be_recorded(folder, monkeypatch, before, record):
    lock = folder / "dvc.lock"
    if before:
        lock.write_text(before)
    dvc = fake(
        lambda command: f"Running stage '{command[-1]}':\n", wrote=lambda: lock.write_text("new")
    )
    monkeypatch.setattr(subprocess, "Popen", dvc)
    assert study.reproduce(["tiny"], record) == ["four@tiny", "report@tiny"]
    assert (lock.read_text() if lock.exists() else None) == ("new" if record else before)


def test_a_stage_that_fails_is_named_with_the_end_of_its_output_and_the_lock_is_put_back(
    folder, monkeypatch
):
    lock = folder / "dvc.lock"
    dvc = fake(lambda command: "ERROR: no corpus\n", code=1, wrote=lambda: lock.write_text("new"))
    monkeypatch.setattr(subprocess, "Popen", dvc)
    with pytest.raises(study.StageError, match=r"one@tiny .*failed:\nERROR: no corpus"):
        study.reproduce(["tiny"])
    assert not lock.exists()


def test_a_dvc_that_dies_without_a_word_is_a_failure_that_is_told(folder, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", fake(lambda command: "", code=-9))
    with pytest.raises(study.StageError, match=r"four@tiny failed:\n\n\(all of it: "):
        study.reproduce(["tiny"])


def test_a_busy_lock_of_dvc_is_waited_for(folder, monkeypatch):
    calls = []

    def popen(command, **options):
        calls.append(command)
        busy = len(calls) < 3
        text = f"ERROR: {study.BUSY}.\n" if busy else f"Running stage '{command[-1]}':\n"
        return fake(lambda command: text, code=255 if busy else 0)(command, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert study.reproduce(["tiny"]) == ["four@tiny", "report@tiny"] and len(calls) == 4


def test_looking_at_the_files_of_a_pair_is_no_stage_that_ran(folder, monkeypatch, capsys):
    def printed(command):
        return "".join(f"Running stage '{name}':\n" for name in ("inputs@tiny", command[-1]))

    monkeypatch.setattr(subprocess, "Popen", fake(printed))
    assert study.reproduce(["tiny"]) == ["four@tiny", "report@tiny"]
    assert "inputs" not in capsys.readouterr().out
