"""A pair from elsewhere: its models stay the commits, or the files, of the first run."""

import json

import pytest
import torch
from support.bloom_study import COMMITS, bloom_study
from support.lama_miniature import tokenizer
from transformers import BloomConfig, BloomForCausalLM

from msif.study.beds import given, testbed
from msif.study.corpora import pinned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with bloom_study(tmp_path_factory.mktemp("study")) as found:
        yield found


@pytest.fixture(scope="module")
def bed(study):
    return given.prepared(42, **study[1])


def test_the_first_run_records_the_commits_and_later_runs_load_them(study, bed):
    folder, settings = study
    models = json.loads((bed.folder / "models.json").read_text())
    assert {x["source"]: x["revision"] for x in models.values()} == COMMITS
    recorded = json.loads((folder / "digests.json").read_text())
    assert recorded["tiny/bloom at main"] == {"commit": COMMITS["tiny/bloom"]}
    main = folder.parent / "hub" / "models--tiny--bloom" / "refs" / "main"
    main.write_text("c" * 40)  # the hub's main moves on: the study stays
    try:
        assert (
            pinned.pinned_models(folder, settings["models"])["pretrained"]["revision"]
            == COMMITS["tiny/bloom"]
        )
    finally:
        main.write_text(COMMITS["tiny/bloom"])


def test_a_prepared_experiment_is_found_again_and_another_seed_is_another(study, bed):
    assert given.prepared(42, **study[1]).folder == bed.folder
    other = given.prepared(43, **study[1])
    assert other.corpus.queries != bed.corpus.queries and other.folder != bed.folder


def test_models_in_folders_are_checked_by_their_files(study, tmp_path):
    folder, settings = study
    reader = tokenizer(folder)
    torch.manual_seed(1)
    for name in ("one", "two"):
        BloomForCausalLM(
            BloomConfig(vocab_size=len(reader), hidden_size=8, n_layer=1, n_head=2)
        ).save_pretrained(tmp_path / name)
        reader.save_pretrained(tmp_path / name)
    local = settings | {
        "models": {
            stage: {"source": str(tmp_path / name)}
            for stage, name in (("pretrained", "one"), ("finetuned", "two"))
        }
    }
    given.prepare(tmp_path / "bed", 42, **local)
    assert testbed.load(tmp_path / "bed").model("finetuned").config.hidden_size == 8
    config = tmp_path / "two" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match="two: config.json has changed"):
        given.prepare(tmp_path / "bed", 42, **local)


def test_models_that_do_not_share_a_tokenizer_are_refused(study, tmp_path):
    folder, settings = study
    reader = tokenizer(folder)
    reader.add_tokens(["<other>"])
    net = BloomForCausalLM(BloomConfig(vocab_size=len(reader), hidden_size=8, n_layer=1, n_head=2))
    net.save_pretrained(tmp_path / "other"), reader.save_pretrained(tmp_path / "other")
    wrong = settings | {
        "models": settings["models"] | {"finetuned": {"source": str(tmp_path / "other")}}
    }
    with pytest.raises(ValueError, match="different vocabularies"):
        given.prepare(tmp_path / "bed", 42, **wrong)
    with pytest.raises(OSError, match="which commit of the model tiny/none revision main"):
        given.prepare(
            tmp_path / "bed",
            42,
            **settings | {"models": dict.fromkeys(settings["models"], {"source": "tiny/none"})},
        )
    assert not (tmp_path / "bed").exists()
