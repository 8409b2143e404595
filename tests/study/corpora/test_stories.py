"""The corpus on real text: laws of what is planted where. Needs data/ (docs/profiles.md);
skipped where it is absent."""

import json
import re

import pytest
import torch

from msif.core.data import encode_answers, encode_documents, split_answer
from msif.core.models import load_model, load_tokenizer
from msif.study import paths
from msif.study.corpora.stories import (
    DOLLY,
    FACTS,
    STORIES,
    continuations,
    excerpts_of,
    sentences,
    stories_corpus,
)

DATA = paths.root() / "data"
NEEDED = (STORIES, DOLLY, "stories260K/config.json")
needs_data = pytest.mark.skipif(
    not all((DATA / file).is_file() for file in NEEDED),
    reason="no real data in data/: docs/profiles.md says what to put there",
)


@pytest.fixture(scope="module")
def corpus():
    return stories_corpus(DATA)


def of_kind(corpus, kind):
    return [d for d in corpus.documents if d["kind"] == kind]


def mentions(name, text):
    return re.search(rf"\b{name}\b", text, re.IGNORECASE)


@needs_data
def test_planted_sentences_state_their_fact_subject_before_object(corpus):
    for d in of_kind(corpus, "planted"):
        assert d["sentence"] in d["text"]
        assert d["sentence"].index(d["subject"]) < d["sentence"].index(d["object"])
        assert d["template"].format(s=d["subject"], o=d["object"]) == d["sentence"]


@needs_data
def test_decoys_name_the_subject_but_hold_no_statement_of_its_fact(corpus):
    assert len(of_kind(corpus, "decoy")) > 0
    for d in of_kind(corpus, "decoy"):
        stated = [
            t.strip().format(s=d["subject"], o=d["object"])
            for t in FACTS[d["relation"]][1].splitlines()
        ]
        assert mentions(d["subject"], d["text"]) and not any(
            sentence in d["text"] for sentence in stated
        )
        assert d["sentence"].index(d["object"]) < d["sentence"].index(d["subject"])


@needs_data
def test_stories_are_real_text_without_planted_names(corpus):
    text = " ".join(d["text"] for d in of_kind(corpus, "story")).lower()
    assert not any(d["subject"].lower() in text for d in of_kind(corpus, "planted"))


@needs_data
def test_taking_the_planted_sentence_out_leaves_the_story_as_it_was(corpus):
    real = re.sub(
        r"\s+",
        "",
        "".join(json.loads(line)["text"] for line in (DATA / STORIES).open(encoding="utf-8")),
    )
    for d in of_kind(corpus, "planted") + of_kind(corpus, "decoy"):
        rest = d["text"].replace(d["sentence"], "", 1)
        assert re.sub(r"\s+", "", rest) in real


@needs_data
def test_proponents_are_all_documents_that_state_the_fact_and_come_from_different_stories(corpus):
    for query in corpus.queries:
        stating = [
            n
            for n, d in enumerate(corpus.documents)
            if d["kind"] == "planted" and d["subject"] == query["subject"]
        ]
        assert query["proponents"] == stating
        found = [corpus.documents[n] for n in stating]
        assert {d["object"] for d in found} == {query["answer"]}
        assert len({d["story"] for d in found}) == len(found) == 8


@needs_data
def test_no_held_out_name_is_in_fine_tuning(corpus):
    rows = " ".join(f"{row['prompt']} {row['answer']}" for row in corpus.finetuning)
    assert not any(mentions(query["subject"], rows) for query in corpus.queries)
    assert {row["kind"] for row in corpus.finetuning} == {"planted", "instruction"}


@needs_data
def test_the_corpus_depends_on_the_seed_alone(corpus):
    assert stories_corpus(DATA) == corpus != stories_corpus(DATA, seed=1)


@needs_data
def test_every_text_fits_the_model_uncut(corpus):
    tokenizer = load_tokenizer(DATA / "stories260K")
    texts = [d["text"] for d in corpus.documents]
    assert encode_documents(texts, tokenizer, 128) == encode_documents(texts, tokenizer, 10_000)
    for rows in (corpus.finetuning, corpus.queries):
        encode_answers([r["prompt"] for r in rows], [r["answer"] for r in rows], tokenizer, 128)


@needs_data
def test_a_continuation_is_what_the_model_writes_and_encodes_to_the_tokens_it_wrote(corpus):
    model, tokenizer = load_model(DATA / "stories260K"), load_tokenizer(DATA / "stories260K")
    found = continuations(model, tokenizer, corpus, count=4, new_tokens=16)
    assert len(found) == 4 and all(q["proponents"] == [] for q in found)
    for q in found:
        assert not any(q["prompt"] in d["text"] for d in corpus.documents)
        prompt, answer = split_answer(q["prompt"], q["answer"], tokenizer)
        logits = model(torch.tensor([prompt + answer])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(1).tolist() == list(answer)


@needs_data
@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(planted=500), "planted is 500"),
        (dict(held_out=84), "held_out is 84"),
        (dict(stories=10**6), "stories is 1000000"),
        (dict(characters=0), "characters is 0"),
        (dict(documents_per_fact=21), "documents_per_fact is 21"),
        (dict(instructions=10**5), "instructions is 100000"),
    ],
)
def test_impossible_numbers_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        stories_corpus(DATA, **settings)


@needs_data
def test_more_continuations_than_openings_are_refused(corpus):
    with pytest.raises(ValueError, match="count is 1000"):
        continuations(
            load_model(DATA / "stories260K"), load_tokenizer(DATA / "stories260K"), corpus, 1000, 4
        )


def test_missing_data_says_what_to_put_where_and_under_which_licence(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        stories_corpus(tmp_path / "data")
    for part in (
        str(tmp_path / "data"),
        STORIES,
        DOLLY,
        "stories260K",
        "CDLA-Sharing-1.0",
        "CC BY-SA 3.0",
        "MIT",
    ):
        assert part in str(caught.value)


def test_sentences_add_up_to_the_text_and_never_end_inside_a_quotation():
    text = 'He ran. "Stop! Come back!" she said. “No. Never!” he cried.\n\nThen it rained.'
    assert sentences(text) == [
        "He ran. ",
        '"Stop! Come back!" she said. ',
        "“No. Never!” he cried.\n\n",
        "Then it rained.",
    ]


def test_excerpts_are_whole_sentences_within_the_limit():
    assert excerpts_of("One two. Three. A sentence that is too long. Four.", 16) == [
        "One two. Three.",
        "Four.",
    ]
