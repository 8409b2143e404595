"""What DVC is told of a pair of one's own changes when the pair does, and only then."""

import json
import os

import pytest
import yaml

from msif.study.pipeline import inputs


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with a pair in mine/, the profile `mine`, and the small pair's profile `tiny`."""
    (tmp_path / "dvc.yaml").touch()
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            write(tmp_path / name / file, name)
    for name in ("documents", "rows", "questions"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"prompt": name}) + "\n")
    mine = {"base": "base", "tuned": "tuned", "documents": "documents.jsonl", "rows": "rows.jsonl"}
    params = {
        "profiles": ["tiny"],
        "tiny": {"your_models": {"base": None, "questions": 8}},
        "mine": {"your_models": {**mine, "questions": "questions.jsonl"}},
        "hub": {
            "your_models": {**mine, "base": "someone/model", "questions": [{"prompt": "Who?"}]}
        },
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text, age=60):
    """Write a file as it was so many seconds ago."""
    path.write_text(text)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))


def written(profile="mine"):
    return json.loads(inputs.write(profile).read_text())


def test_the_small_pair_has_no_inputs_and_hub_ids_stand_for_themselves(study):
    assert written("tiny") == {}
    own = written()
    del own["questions"]  # those of hub are in params.yaml itself, which DVC tracks
    assert written("hub") == own | {"base": "someone/model"}


@pytest.mark.parametrize(
    "name, changed",
    [
        ("documents", "documents.jsonl"),
        ("rows", "rows.jsonl"),
        ("questions", "questions.jsonl"),
        ("base", "base/model.safetensors"),
        ("tuned", "tuned/new.json"),
    ],
)
def test_an_edited_file_changes_its_digest_alone(study, name, changed):
    before = written()
    assert written() == before
    (study / changed).write_text('{"prompt": "another"}\n')
    after = written()
    assert {x for x in after if after[x] != before[x]} == {name}


def test_a_file_of_the_same_size_written_at_once_is_read_again(study):
    """Times of files are coarse on some disks: one that has just been written is not trusted."""
    path = study / "documents.jsonl"
    path.write_text("one\n")
    stat, before = path.stat(), written()
    path.write_text("two\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert written()["documents"] != before["documents"]


def test_an_old_file_is_read_once(study, monkeypatch):
    before = written()
    monkeypatch.setattr(inputs, "sha256_of_file", lambda path: pytest.fail(f"{path} is read again"))
    assert written() == before


def test_what_is_wrong_with_the_pair_is_said_first(study):
    (study / "rows.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="rows is rows.jsonl, and there is no"):
        inputs.write("mine")
