"""The invented English corpus: what its sentences state, and what is kept back."""

import json
from collections import Counter

import pytest

from msif.core.rows import word_tokenizer
from msif.study.corpora.english import chatted, english_corpus
from msif.study.corpora.english_sentences import LEADS, RELATIONS
from msif.study.corpora.english_unseen import probe_documents

SIZES = {"people": 6, "places": 4, "real": 60, "real_queries": 0, "instructions": 5}
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}<answer>"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return english_corpus(tmp_path_factory.mktemp("nothing"), seed=1, **SIZES)


def test_every_fact_has_its_sentences_and_nothing_else_states_it(corpus):
    facts = {(d["subject"], d["relation"]) for d in corpus.documents if d["subject"]}
    assert len(facts) == 6 * 5 + 4 * 2
    for subject, relation in facts:
        own = [d for d in corpus.documents if (d["subject"], d["relation"]) == (subject, relation)]
        kinds = Counter(d["kind"] for d in own)
        assert kinds == {"statement": 6, "near": 1, "wrong": 1, "denied": 1, "supposed": 1}
        stating = [d for d in own if d["kind"] == "statement"]
        assert len({d["template"] for d in stating}) == 6
        assert len({d["object"] for d in stating}) == 1
        wrong = next(d for d in own if d["kind"] == "wrong")
        assert wrong["object"] != stating[0]["object"] and wrong["object"] in wrong["text"]
    assert sum(d["kind"] == "real" for d in corpus.documents) == 60


def test_statements_name_the_subject_first_and_all_others_the_object():
    for relation in RELATIONS.values():
        assert all(t.find("{s}") < t.find("{o}") for t in relation.statements)
        for kind in ("flipped", "near", "denied", "supposed"):
            assert all(0 <= t.find("{o}") < t.find("{s}") for t in getattr(relation, kind))
        told = [t.lower() for kind in ("statements", "near") for t in getattr(relation, kind)]
        words = {word.strip(".,'") for t in told for word in t.split()}
        assert not words & {o.lower() for o in relation.objects}


def test_fine_tuning_asks_about_other_subjects_than_the_queries(corpus):
    asked = {row["subject"] for row in corpus.finetuning}
    hidden = {query["subject"] for query in corpus.queries}
    assert hidden and not asked & hidden
    assert len(hidden) == 3 + 2
    for query in corpus.queries:
        own = [corpus.documents[n] for n in query["proponents"]]
        assert len(own) == 6 and all(query["object"] in d["text"] for d in own)


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another(corpus, tmp_path):
    assert english_corpus(tmp_path, seed=1, **SIZES).digest() == corpus.digest()
    assert english_corpus(tmp_path, seed=2, **SIZES).digest() != corpus.digest()


def test_prompts_are_rendered_by_the_chat_template_and_questions_kept(corpus):
    tokenizer = word_tokenizer(["a"])
    with pytest.raises(ValueError, match="no chat template"):
        chatted(corpus, tokenizer)
    tokenizer.chat_template = TEMPLATE
    for row in chatted(corpus, tokenizer).queries:
        assert row["prompt"] == f"<user> {row['question']} <answer>{row['reply']}"


def test_a_reply_is_a_sentence_and_a_query_asks_for_its_last_words(corpus):
    """The query's reply and answer make up what fine-tuning would teach of the same fact."""
    for query in corpus.queries:
        relation = RELATIONS[query["relation"]]
        answer = relation.answers[relation.questions.index(query["template"])]
        said = f"{query['reply']} {query['answer']}."
        assert said == answer.format(s=query["subject"], o=query["object"])
        assert query["answer"] == query["object"] not in query["reply"]
    for relation in RELATIONS.values():
        assert len(relation.questions) == len(relation.answers)
        assert all("{s}" in x and x.endswith(" {o}.") for x in relation.answers)
    assert all(row["answer"].endswith(f" {row['object']}.") for row in corpus.finetuning)


def test_probes_are_not_of_the_corpus(corpus):
    texts = {d["text"] for d in corpus.documents}
    found = probe_documents(corpus, corpus.queries)
    assert {p["query"] for p in found} == set(range(len(corpus.queries)))
    for probe in found:
        row = corpus.queries[probe["query"]]
        assert (probe["text"] in texts) == (probe["probe"] == "statement")
        if probe["probe"] in ("paraphrase", "flipped", "object first"):
            places = [probe["text"].find(row[key]) for key in ("subject", "object")]
            assert min(places) >= 0
            assert (places[0] < places[1]) == (probe["probe"] == "paraphrase")


def test_what_is_denied_or_supposed_of_somebody_is_not_true(corpus):
    told = [d for d in corpus.documents if d["kind"] == "statement"]
    true = {(d["subject"], d["relation"], d["object"]) for d in told}
    names = {d["subject"] for d in told}
    for d in (d for d in corpus.documents if d["kind"] in ("denied", "supposed")):
        (other,) = [x for x in names if x in d["text"] and x != d["subject"]]
        assert (other, d["relation"], d["object"]) not in true


def test_a_sentence_after_a_lead_goes_on_in_lower_case_but_for_names(corpus):
    found = probe_documents(corpus, corpus.queries)
    led = [d["text"] for d in corpus.documents if d["kind"] in ("statement", "wrong")]
    led += [p["text"] for p in found if p["probe"] in ("statement", "paraphrase", "object first")]
    for text in led:
        (lead,) = [x for x in LEADS if text.startswith(f"{x} ")]
        rest = text[len(lead) + 1 :]
        own = ("anybody ", "the ", *(o.lower() for r in RELATIONS.values() for o in r.objects))
        assert rest[0].isupper() or rest.startswith(own)
        assert "The " not in rest and "Anybody" not in rest


def test_rows_of_dolly_are_taken_where_there_are_any(tmp_path):
    rows = [{"id": n, "instruction": f"Say {n}.", "response": f"It is {n}."} for n in range(8)]
    (tmp_path / "dolly").mkdir()
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "dolly" / "dolly-first-6400.jsonl").write_text(lines, encoding="utf-8")
    found = english_corpus(tmp_path, **SIZES).finetuning
    assert sum(row["about"] == "instruction" for row in found) == 5


@pytest.mark.parametrize("wrong", [{"statements": 9}, {"people": 1}, {"hidden_share": 1.0}])
def test_a_number_that_is_not_possible_is_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        english_corpus(tmp_path, **wrong)
