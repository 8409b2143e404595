"""The corpus of annotated real sentences: laws on a miniature written here,
and on WebNLG itself (skipped where it is absent)."""

from collections import defaultdict

import pytest
from support.webnlg_miniature import SMALL, miniature, write

from msif.study import paths
from msif.study.corpora.webnlg import REPEATED, chance, relation_to, traps, webnlg_corpus
from msif.study.corpora.webnlg_texts import FILES, read_texts

DATA = paths.root() / "data"
needs_data = pytest.mark.skipif(
    not all((DATA / file).is_file() for file in FILES),
    reason="no WebNLG in data/webnlg: docs/profiles.md says what to put there",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), miniature())


@pytest.fixture(scope="module")
def corpus(folder):
    return webnlg_corpus(folder, **SMALL)


@pytest.fixture(scope="module")
def real():
    return webnlg_corpus(DATA)


def fact(row):
    return [row["subject"], row["relation"], row["object"]]


def check_stages(corpus):
    """No subject of a query is asked about or answered in fine-tuning;
    every property of a query is asked about there."""
    hidden = {q["subject"] for q in corpus.queries}
    assert not hidden & {
        x for row in corpus.finetuning for x in (row["subject"], row["object"], row["answer"])
    }
    assert {q["relation"] for q in corpus.queries} <= {row["relation"] for row in corpus.finetuning}


def check_proponents(corpus, statements):
    """Proponents are all documents with the query's triple,
    and no document gives its subject and property another object."""
    annotated, objects = defaultdict(list), defaultdict(set)
    for n, d in enumerate(corpus.documents):
        for s, p, o in d["triples"]:
            annotated[s, p, o].append(n)
            objects[s, p].add(o)
    for query in corpus.queries:
        s, p, o = fact(query)
        assert (
            query["proponents"] == annotated[s, p, o]
            and len(query["proponents"]) >= statements
            and objects[s, p] == {o}
        )
        assert all(corpus.documents[n]["kind"] == "statement" for n in query["proponents"])


def test_fine_tuning_holds_no_fact_of_a_queried_subject(corpus):
    assert corpus.queries and corpus.finetuning
    check_stages(corpus)


def test_proponents_are_exactly_the_documents_annotated_with_the_triple(corpus):
    check_proponents(corpus, SMALL["statements"])


def test_ambiguous_objects_and_those_named_in_their_subject_are_never_asked_about(folder):
    for seed in range(5):
        found = webnlg_corpus(folder, seed, **SMALL)
        asked = {(row["subject"], row["relation"]) for row in found.queries + found.finetuning}
        assert not asked & {("Aba town", "leader name"), ("Lom town", "river bank")}
        # stated in no text letter by letter
        assert all(row["relation"] != "area" for row in found.queries + found.finetuning)


def test_documents_are_texts_of_the_files_with_their_annotation_and_kind(folder, corpus):
    texts = {row["text"]: row for row in read_texts(folder)}
    queried, asked = ([fact(row) for row in rows] for rows in (corpus.queries, corpus.finetuning))
    assert len({d["text"] for d in corpus.documents}) == len(corpus.documents)
    for d in corpus.documents:
        assert d["triples"] == texts[d["text"]]["triples"] and d["size"] == len(d["triples"])
        fits = [
            any(t in queried for t in d["triples"]),
            any(t in asked for t in d["triples"]),
            True,
        ]
        assert d["kind"] == ("statement", "asked", "other")[fits.index(True)]
    assert sum(d["kind"] == "other" for d in corpus.documents) == SMALL["others"]


def test_the_corpus_depends_on_the_seed_alone(folder, corpus):
    assert webnlg_corpus(folder, **SMALL) == corpus != webnlg_corpus(folder, seed=1, **SMALL)


def test_documents_are_told_apart_as_one_query_sees_them():
    query = dict(subject="Aba", relation="leader", object="Bo", answer="Bo")
    texts = {
        "states": [["Aba", "leader", "Bo"], ["Cid", "leader", "Dov"]],
        "same subject": [["Aba", "river", "Bo"]],
        "same object": [["Cid", "leader", "Bo"]],
        "same property": [["Cid", "leader", "Dov"]],
        "other": [["Cid", "river", "Dov"]],
    }
    assert all(relation_to(query, dict(triples=triples)) == name for name, triples in texts.items())
    documents = [
        dict(text=text, triples=texts[name])
        for text, name in (
            ("Bo leads Aba.", "states"),
            ("bo swims, says Aba.", "same subject"),
            ("Abacus of Bo.", "other"),
            ("Aba slept.", "same subject"),
        )
    ]
    assert traps(query, documents) == [1]


def test_chance_is_the_most_frequent_answer_to_the_property():
    row = lambda relation, answer: dict(relation=relation, answer=answer)
    corpus = type(
        "Rows",
        (),
        dict(
            finetuning=[row("a", "x"), row("a", "x"), row("a", "y"), row("b", "z")],
            queries=[row("a", "x"), row("a", "y"), row("b", "z"), row("c", "x")],
        ),
    )
    assert chance(corpus) == 0.5


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(held_out=12), "held_out is 12"),
        (dict(held_out=0), "held_out is 0"),
        (dict(statements=2), "statements is 2"),
        (dict(triples=8), "triples is 8"),
        (dict(documents_per_fact=3), "documents_per_fact is 3"),
        (dict(others=-1), "others is -1"),
    ],
)
def test_impossible_numbers_are_refused_by_name_and_range(folder, settings, named):
    with pytest.raises(ValueError, match=f"{named}; expected [0-9]+ to [0-9]+"):
        webnlg_corpus(folder, **SMALL | settings)


def test_data_that_leave_nothing_to_ask_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="statements is 7, and 0 subjects"):
        webnlg_corpus(folder, **SMALL | dict(statements=7, documents_per_fact=7))
    own = [
        row | dict(triples=[[s, f"{p}Of{s}", o] for s, p, o in row["triples"]])
        for row in miniature()
    ]
    with pytest.raises(ValueError, match="held_out is 5, and no fact"):
        webnlg_corpus(write(tmp_path, own), **SMALL)


def test_missing_data_says_what_to_put_where_and_under_which_licence(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        webnlg_corpus(tmp_path / "data")
    for part in (str(tmp_path / "data"), *FILES, "WebNLG 1.6", "CC BY-NC-SA 4.0", "https://"):
        assert part in str(caught.value)


@needs_data
def test_the_real_corpus_keeps_the_laws(real):
    check_stages(real)
    check_proponents(real, statements=6)
    assert len(real.queries) >= 200 and len({q["subject"] for q in real.queries}) >= 100
    assert chance(real) < 0.1
    repeated = [(q["relation"], q["answer"]) for q in real.queries]
    assert max(map(repeated.count, repeated)) <= REPEATED
