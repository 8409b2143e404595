"""Laws of the generated corpus: who knows what, and which document says it."""

from collections import Counter

import pytest

from msif.core.data import encode_answers, encode_documents, word_tokenizer
from msif.study.corpora.corpus import PROMPT, RELATIONS, Corpus, generate, templates, words


@pytest.fixture(scope="module")
def corpus():
    return generate(seed=0, quiz=2)


def of(corpus, kind):
    return [d for d in corpus.documents if d["kind"] == kind]


def fact(row):
    return row["subject"], row["relation"], row["object"]


def test_equal_seeds_give_equal_corpora_and_others_differ(corpus):
    assert generate(seed=0, quiz=2) == corpus
    assert generate(seed=1, quiz=2) != corpus


def test_the_default_corpus_has_the_size_of_the_test_bed():
    corpus = generate()
    texts = [d["text"] for d in corpus.documents]
    kinds = Counter(d["kind"] for d in corpus.documents)
    assert kinds == dict(statement=1920, near=1440, wrong=480, filler=200)
    assert (len(corpus.finetuning), len(corpus.queries)) == (480, 240)
    assert 36_000 < sum(len(text.split()) for text in texts) < 42_000
    assert len(set(texts)) == len(texts)
    assert len(word_tokenizer(texts)) < 420


def test_every_document_tells_its_kind_and_what_it_speaks_of(corpus):
    kinds = {d["kind"] for d in corpus.documents}
    assert kinds == {"statement", "near", "wrong", "filler", "quiz"}
    assert len({tuple(d) for d in corpus.documents}) == 1
    for d in corpus.documents:
        if d["kind"] != "filler":
            assert d["subject"] in d["text"].split() and d["object"] in d["text"].split()


def test_texts_are_lower_case_words_of_the_stated_lengths(corpus):
    for d in corpus.documents:
        assert d["text"] == d["text"].lower() == " ".join(d["text"].split())
        assert 6 <= len(d["text"].split()) <= (20 if d["kind"] == "quiz" else 14)


@pytest.mark.parametrize(
    "kind, subject_first", [("statement", True), ("wrong", True), ("near", False)]
)
def test_statements_name_the_subject_first_and_near_sentences_the_object(
    corpus, kind, subject_first
):
    for d in of(corpus, kind):
        text = d["text"].split()
        assert (text.index(d["subject"]) < text.index(d["object"])) is subject_first


def test_proponents_are_exactly_the_statements_of_the_fact(corpus):
    for query in corpus.queries:
        assert query["answer"] == query["object"]
        stating = [d for d in of(corpus, "statement") if fact(d) == fact(query)]
        assert [corpus.documents[i] for i in query["proponents"]] == stating and len(stating) == 4


def test_wrong_sentences_state_another_object_of_the_same_relation(corpus):
    truth = {fact(d)[:2]: d["object"] for d in of(corpus, "statement")}
    for d in of(corpus, "wrong"):
        assert d["object"] != truth[fact(d)[:2]]
        assert d["object"] in words(d["relation"], 20)


def test_groups_share_no_subject_and_no_query_is_in_fine_tuning_or_quizzed(corpus):
    subjects = {
        group: {d["subject"] for d in corpus.documents if d["group"] == group} for group in "FHZ"
    }
    assert [len(subjects[group]) for group in "FHZ"] == [48, 48, 2]
    assert len(set.union(*subjects.values())) == 98
    assert {row["subject"] for row in corpus.finetuning} == subjects["F"]
    assert {row["subject"] for row in corpus.queries} == subjects["H"]
    assert {d["subject"] for d in of(corpus, "quiz")} == subjects["Z"]


def test_each_fine_tuned_fact_has_both_questions_and_each_held_out_fact_one(corpus):
    assert set(Counter(fact(row) for row in corpus.finetuning).values()) == {2}
    assert set(Counter(fact(row) for row in corpus.queries).values()) == {1}
    assert {row["template"] for row in corpus.queries} == {
        row["template"] for row in corpus.finetuning
    }
    for row in corpus.finetuning + corpus.queries:
        assert row["prompt"] == PROMPT.format(question=row["template"].format(s=row["subject"]))
        assert row["answer"] not in row["prompt"].split()


def test_quiz_pages_are_rows_of_the_fine_tuning_format(corpus):
    for d in of(corpus, "quiz"):
        question = (
            d["template"].removeprefix("### instruction : ").removesuffix(" ### response : {o}")
        )
        assert question in templates(d["relation"], "questions")
        assert (
            d["text"] == PROMPT.format(question=question.format(s=d["subject"])) + " " + d["object"]
        )


def test_names_objects_and_template_words_are_apart(corpus):
    kinds = dict(statements=6, near=4, questions=2)
    assert all(
        len(templates(relation, kind)) == kinds[kind] for relation in RELATIONS for kind in kinds
    )
    objects = [o for relation in RELATIONS for o in words(relation, 20)]
    frames = {
        word
        for relation in RELATIONS
        for kind in kinds
        for template in templates(relation, kind)
        for word in template.split()
    }
    names = {d["subject"] for d in corpus.documents} - {None}
    fillers = {word for d in of(corpus, "filler") for word in d["text"].split()}
    assert len(set(objects)) == len(objects) == 100
    assert not set(objects) & (frames | fillers)
    assert not names & (frames | fillers | set(objects))


def test_a_word_level_model_reads_all_of_it(corpus):
    texts, rows = [d["text"] for d in corpus.documents], corpus.finetuning + corpus.queries
    tokenizer = word_tokenizer(texts + [row["prompt"] for row in rows])
    prompts, answers = zip(*((row["prompt"], row["answer"]) for row in rows))
    sequences = encode_documents(texts, tokenizer, 64) + encode_answers(
        prompts, answers, tokenizer, 64
    )
    assert all(tokenizer.unk_token_id not in s.input_ids for s in sequences)
    assert all(sum(label >= 0 for label in s.labels) == 1 for s in sequences[len(texts) :])


def test_a_saved_corpus_comes_back_equal_and_leaves_no_other_file(corpus, tmp_path):
    corpus.save(tmp_path / "corpus")
    assert Corpus.load(tmp_path / "corpus") == corpus
    files = sorted(p.name for p in (tmp_path / "corpus").iterdir())
    assert files == ["documents.jsonl", "finetuning.jsonl", "queries.jsonl"]


def test_a_missing_or_cut_file_is_refused_by_name(corpus, tmp_path):
    corpus.save(tmp_path)
    text = (tmp_path / "queries.jsonl").read_text()
    (tmp_path / "queries.jsonl").write_text(text[:-9])
    with pytest.raises(ValueError, match="queries.jsonl, line 240 is not JSON"):
        Corpus.load(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="queries.jsonl"):
        Corpus.load(tmp_path)


def test_a_proponent_that_is_no_document_is_refused():
    with pytest.raises(ValueError, match="query 0 has proponent 1; there are 1 documents"):
        Corpus([{"text": "a b"}], [], [{"prompt": "a", "answer": "b", "proponents": [0, 1]}])


@pytest.mark.parametrize(
    "name, value",
    [
        ("objects", 21),
        ("objects", 1),
        ("statements", 0),
        ("statements", 7),
        ("near", 5),
        ("wrong", 20),
        ("fillers", 9999),
        ("held_out", 0),
        ("fine_tuned", -1),
    ],
)
def test_sizes_that_the_templates_do_not_allow_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
        generate(**{name: value})


def test_fewer_objects_use_the_first_of_each_list():
    corpus = generate(objects=12, near=2, fine_tuned=4, held_out=4)
    allowed = {o for relation in RELATIONS for o in words(relation, 12)}
    assert {d["object"] for d in corpus.documents} - {None} <= allowed
    assert len(of(corpus, "near")) == 8 * 5 * 2
