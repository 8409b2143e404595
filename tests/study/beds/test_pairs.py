"""The test-bed of a pair in dolly's format: what the models read, to the id;
from local folders in the hub's layout."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from support import ROOT
from support.small_pair import build, inside, needs_data

from msif.core.data import NO_LOSS, check, digest
from msif.core.files import json_lines
from msif.core.models import limits, load_tokenizer
from msif.study.beds import pairs
from msif.study.corpora import dolly, neighbours

pytestmark = needs_data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(settings, test-bed) inside a study of its own."""
    with inside(tmp_path_factory.mktemp("study")) as folder:
        settings = build(folder)
        yield settings, pairs.prepared(0, **settings), folder


def test_the_hubs_tokenizer_files_read_as_the_tokenizer_itself(made):
    _, bed, folder = made
    text = "A tree:\n\n    the oak's  ### End\n\n### Response:\nno"
    for name, kept in ("base", False), ("tuned", True):
        loaded, ids = load_tokenizer(folder / name), bed.tokenizer(text)["input_ids"]
        assert (loaded(text)["input_ids"] == ids) == kept and loaded(text.replace("#", ""))[
            "input_ids"
        ] == bed.tokenizer(text.replace("#", ""))["input_ids"]
    assert len(bed.tokenizer) == 50280


def test_documents_are_chunks_as_the_base_model_reads_them(made):
    settings, bed, folder = made
    plain, rows = load_tokenizer(folder / "base"), bed.corpus.documents
    whole = {
        x["text"]
        for name in ("wikipedia", "pile")
        for x in json_lines(folder / name / "train.jsonl")
    }
    for document in sorted({row["document"] for row in rows}):
        own = [n for n, row in enumerate(rows) if row["document"] == document]
        ids = [i for n in own for i in bed.documents[n].input_ids]
        (text,) = [x for x in whole if plain(x)["input_ids"][: len(ids)] == ids]
        assert (
            len(plain(text)["input_ids"]) - len(ids) <= 1
            and len({(rows[n]["kind"], rows[n]["title"], rows[n]["number"]) for n in own}) == 1
        )
    assert all(x.labels == x.input_ids and 2 <= len(x.input_ids) <= 64 for x in bed.documents)
    assert {row["kind"] for row in rows} == {"wikipedia", "pile"} and not any(
        row["title"].startswith("wikipedia ") for row in rows
    )
    check(bed.documents, *limits(bed.model("pretrained")))


def test_rows_and_queries_have_labels_on_the_response_alone(made):
    _, bed, _ = made
    for row, x in zip(bed.corpus.finetuning, bed.finetuning):
        assert (
            bed.tokenizer.decode([i for i in x.labels if i != NO_LOSS])
            == row["answer"] + "\n\n### End"
        )
    for row, x in zip(bed.corpus.queries, bed.queries):
        assert bed.tokenizer.decode([i for i in x.labels if i != NO_LOSS]).strip() == row["answer"]
        assert (
            bed.tokenizer.decode([i for i, y in zip(x.input_ids, x.labels) if y == NO_LOSS])
            == row["formatted"]
        )
    assert bed.history["left_out"]["too long"] == 14 - len(bed.finetuning) > 0


def test_queries_are_the_fine_tuned_models_answers_with_candidates_of_their_own(made):
    _, bed, _ = made
    rows = bed.corpus.queries
    kinds = [x["kind"] for x in bed.corpus.documents]
    owner = pairs.owners(bed)
    assert [row["how"] for row in rows] == ["greedy", "sample 1"] * 2 + ["given"]
    tuned = bed.model("finetuned")
    for row, x in zip(rows, bed.queries):
        assert dolly.token_logprobs(tuned, x).tolist() == pytest.approx(row["logprobs"], abs=1e-4)
        assert row["candidates"] and row["proponents"] == []
        inside_own = {owner[n] for n in row["candidates"]}
        assert all(n in row["candidates"] for n, o in enumerate(owner) if o in inside_own), (
            "documents are there as a whole"
        )
        assert {n for near in row["found"].values() for n in near} <= inside_own
    near = {
        kinds[owner.index(o)] for row in rows[2:4] for found in row["found"].values() for o in found
    }
    assert near == {"wikipedia"}


def test_factor_chunks_are_a_sample_of_one_corpus_and_all_hangs_on_the_seed(made):
    settings, bed, folder = made
    chunks, plain = pairs.factor_documents(bed), load_tokenizer(folder / "base")
    pile = neighbours.chunked(
        [x["text"] for x in json_lines(folder / "pile" / "train.jsonl")], plain, 64
    )[1]
    assert (
        len(chunks) == 8
        and {x.input_ids for x in chunks} <= set(pile)
        and [x.index for x in chunks] == list(range(8))
    )
    again = pairs.prepared(0, **settings)
    assert (
        again.folder == bed.folder
        and again.queries == bed.queries
        and again.documents == bed.documents
    )
    assert pairs.factor_documents(pairs.prepared(1, **settings)) != chunks


def test_a_pair_that_does_not_fit_together_is_refused(made):
    settings, _, folder = made
    other = json.loads((folder / "tuned" / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    vocabulary["the"], vocabulary["and"] = vocabulary["and"], vocabulary["the"]
    (folder / "other").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (folder / "other" / name).write_bytes((folder / "tuned" / name).read_bytes())
    (folder / "other" / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="may add tokens but not change any"):
        pairs.prepared(
            0, **settings | {"models": settings["models"] | {"finetuned": {"source": "other"}}}
        )
    for changes, message in [
        (
            {"factor_documents": {"corpus": "books", "chunks": 2}},
            "'factor_documents' names the corpus 'books'; the corpora are",
        ),
        (
            {"factor_documents": {"corpus": "pile", "chunks": 0}},
            "0 chunks of 'pile' are none: ask for",
        ),
        (
            {"questions": [{"instruction": "Who?", "corpus": "papers"}]},
            "'Who.' names the corpus 'papers'",
        ),
        ({"search": {"methods": ["knn"]}}, "'knn' unknown; there are embeddings, bm25, tfidf"),
    ]:
        with pytest.raises(ValueError, match=message):
            pairs.prepared(0, **settings | changes)
    with pytest.raises(TypeError, match="epochs"):
        pairs.prepared(0, **settings, epochs=2)


def test_the_outline_has_shapes_and_no_numbers(made):
    _, bed, _ = made
    net, real = pairs.outline(**pairs.models(bed)["finetuned"]), bed.model("finetuned")
    assert {k: (v.shape, v.dtype) for k, v in net.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in real.state_dict().items()
    }
    assert all(p.device == torch.device("meta") for p in net.parameters()) and limits(
        net
    ) == limits(real) == (50280, 256)


FROM_THE_HUB = """
import json, sys
from msif.study.beds import pairs
from msif.core.data import digest
bed = pairs.prepared(0, **json.load(open("settings.json")))
digests = [digest(x) for x in (bed.documents, bed.finetuning, bed.queries)]
print(json.dumps(digests + [pairs.models(bed)]))
"""


@pytest.mark.slow
def test_hub_ids_read_as_folders_do_and_are_pinned_to_their_commits(made):
    """The small pair under the names of the real one in the hub's own cache, without a network."""
    settings, bed, folder = made
    ids = {"pretrained": "EleutherAI/pythia-2.8b", "finetuned": "databricks/dolly-v2-3b"}
    for (name, source), letter in zip(ids.items(), "ab"):
        cache = folder / "hf" / "hub" / f"models--{source.replace('/', '--')}"
        shutil.copytree(
            folder / settings["models"][name]["source"], cache / "snapshots" / (letter * 40)
        )
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(letter * 40)
    named = settings | {
        "models": {name: {"source": source, "revision": "main"} for name, source in ids.items()}
    }
    (folder / "settings.json").write_text(json.dumps(named))
    found = subprocess.run(
        [sys.executable, "-c", FROM_THE_HUB],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"},
    )
    assert found.returncode == 0, found.stderr
    *digests, models = json.loads(found.stdout.splitlines()[-1])
    assert digests == [digest(x) for x in (bed.documents, bed.finetuning, bed.queries)]
    assert {name: at["revision"] for name, at in models.items()} == {
        "pretrained": "a" * 40,
        "finetuned": "b" * 40,
    }
    assert json.loads((folder / "pinned" / "digests.json").read_text())[
        "EleutherAI/pythia-2.8b at main"
    ] == {"commit": "a" * 40}
