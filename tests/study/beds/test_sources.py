"""Where test-beds come from: each source's settings reach its function,
and what does not fit is refused before any training."""

import pytest

from msif.study.beds import sources
from msif.study.corpora.corpus import generate

TRAINING = {"pretraining": {"epochs": 1, "rate": 1e-3}, "finetuning": {"epochs": 1, "rate": 1e-3}}


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()  # a study with its own scratch/
    monkeypatch.chdir(tmp_path)


def test_a_generated_test_bed_and_its_chance():
    given = {
        "fine_tuned": 2,
        "held_out": 1,
        "objects": 2,
        "statements": 1,
        "near": 0,
        "wrong": 0,
        "fillers": 3,
    }
    bed = sources.bed(
        5, {"source": "generated", **given}, {"width": 8, "layers": 1, "heads": 2}, **TRAINING
    )
    assert bed.corpus == generate(seed=5, **given) and bed.checkpoints == ["pretrained"]
    assert 0.5 <= sources.chance([bed]) <= 1  # two objects a relation, or one that occurs


def test_unknown_sources_and_training_where_there_is_none_are_refused():
    with pytest.raises(ValueError, match="corpus source 'web': expected one of .*'lama'"):
        sources.bed(0, {"source": "web"}, {}, **TRAINING)
    with pytest.raises(ValueError, match="takes a pair of models as it is"):
        sources.bed(0, {"source": "lama", "folder": "x"}, {}, **TRAINING)


def test_missing_data_is_named_with_what_to_put_there():
    for source, file in (
        ("stories", "stories.jsonl"),
        ("webnlg", "webnlg/train.jsonl"),
        ("lama", "relations.jsonl"),
    ):
        training = {} if source == "lama" else TRAINING
        more = {"finetuning": {"source": "rows.jsonl"}} if source == "lama" else {}
        with pytest.raises(FileNotFoundError, match=file):
            sources.bed(0, {"source": source, "folder": "absent", **more}, {}, **training)
