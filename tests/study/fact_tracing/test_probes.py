"""Probes are what they say they are, and their scores are those of `influence.score`."""

from collections import Counter

import numpy as np
import pytest

from msif.core.data import encode_documents, word_tokenizer
from msif.core.influence import query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.core.models import tiny_gpt_neox
from msif.study.beds.testbed import encode
from msif.study.corpora.corpus import RELATIONS, generate
from msif.study.fact_tracing import probes
from msif.study.fact_tracing.probes import PROBES, probe_documents, probe_scores, sparsity, summary

CORPUS = generate(0, fine_tuned=8, held_out=6, objects=3, fillers=40)
FOUND = probe_documents(CORPUS, CORPUS.queries)
TEXTS = {d["text"] for d in CORPUS.documents}


def by_query():
    """[(row, {probe: text})]"""
    table = [{} for _ in CORPUS.queries]
    for p in FOUND:
        table[p["query"]][p["probe"]] = p["text"]
    return list(zip(CORPUS.queries, table))


def about(text):
    """The (subject, relation, object, template) that a statement makes of the corpus's people."""
    subjects = {d["subject"] for d in CORPUS.documents if d["subject"]}
    return [
        (s, r, o, t)
        for s in subjects & set(text.split())
        for r, relation in RELATIONS.items()
        for o in set(relation["objects"].split()) & set(text.split())
        for t in (line.strip() for line in relation["statements"].splitlines())
        if t.format(s=s, o=o) == text
    ]


def test_every_fact_has_every_probe_once_here():
    assert len(FOUND) == len({(p["query"], p["probe"]) for p in FOUND})
    assert all(
        {"statement", "paraphrase", "object first", "reversed", "other relation", "unrelated"}
        <= set(t)
        for _, t in by_query()
    )
    # the fact with its object first is a sentence of the English corpus alone
    assert set(PROBES) - {"flipped"} == {p["probe"] for p in FOUND}


def test_only_the_statement_is_in_the_corpus_and_no_probe_has_a_new_word():
    words = {word for text in TEXTS for word in text.split()}
    for p in FOUND:
        assert (p["text"] in TEXTS) == (p["probe"] == "statement") and set(
            p["text"].split()
        ) <= words


def test_the_statement_is_one_of_the_facts_own_and_the_paraphrase_another_template_of_it():
    for row, texts in by_query():
        held = {CORPUS.documents[n]["template"] for n in row["proponents"]}
        assert texts["statement"] in {CORPUS.documents[n]["text"] for n in row["proponents"]}
        [(*fact, template)] = about(texts["paraphrase"])
        assert fact == [row["subject"], row["relation"], row["object"]] and template not in held


def test_flipped_probes_are_permutations_with_the_object_before_the_subject():
    for row, texts in by_query():
        for probe in ("object first", "reversed"):
            words = texts[probe].split()
            assert Counter(words) == Counter(texts["statement"].split()) and words.index(
                row["object"]
            ) < words.index(row["subject"])
        assert texts["reversed"].split()[::-1] == texts["statement"].split()
        assert (
            sum(a != b for a, b in zip(texts["object first"].split(), texts["statement"].split()))
            == 2
        )


def test_other_facts_are_true_ones_of_the_same_subject_or_object():
    true = {
        (d["subject"], d["relation"], d["object"])
        for d in CORPUS.documents
        if d["kind"] == "statement"
    }
    for row, texts in by_query():
        for probe in {"other relation", "other subject"} & texts.keys():
            [(subject, relation, thing, _)] = about(texts[probe])
            assert (subject, relation, thing) in true
            assert (subject == row["subject"]) == (probe == "other relation")
            assert (
                (relation == row["relation"])
                == (thing == row["object"])
                == (probe == "other subject")
            )
        assert not {row["subject"], row["object"]} & set(texts["unrelated"].split())


def test_probes_repeat_with_their_seed():
    assert (
        probe_documents(CORPUS, CORPUS.queries)
        == FOUND
        != probe_documents(CORPUS, CORPUS.queries, seed=1)
    )


def test_a_corpus_that_holds_every_template_has_no_paraphrase_and_says_so():
    full = generate(0, fine_tuned=2, held_out=2, objects=3, fillers=5, statements=6)
    with pytest.raises(ValueError, match="row 0.*fewer statements than the 6"):
        probe_documents(full, full.queries)


@pytest.mark.parametrize(
    "wrong, says", [({"relation": "shoe size"}, "shoe size"), ({"proponents": []}, "no proponents")]
)
def test_rows_that_are_no_generated_fact_are_named(wrong, says):
    with pytest.raises(ValueError, match=f"row 1 has.*{says}"):
        probe_documents(CORPUS, [CORPUS.queries[0], CORPUS.queries[0] | wrong])


@pytest.fixture(scope="module")
def scored():
    """(documents' Scores, {normalised: records}) on an untrained model, w = q."""
    rows = CORPUS.finetuning + CORPUS.queries
    tokenizer = word_tokenizer(
        [d["text"] for d in CORPUS.documents] + [f"{r['prompt']} {r['answer']}" for r in rows]
    )
    net = tiny_gpt_neox(len(tokenizer), width=16, layers=1, heads=2)
    layers, (documents, _, queries) = tracked_layers(net), encode(CORPUS, tokenizer, 32)
    tracked_model = Tracked(net, layers)
    w = query_gradients(tracked_model, queries)
    texts = encode_documents([p["text"] for p in FOUND], tokenizer, 32)
    of_probes = score(tracked_model, texts, w)
    forms = {False: of_probes.values, True: of_probes.normalised()}
    records = {n: probe_scores(FOUND, values) for n, values in forms.items()}
    return score(tracked_model, documents, w), records


def test_statements_score_as_the_same_documents_of_the_corpus(scored):
    found, records = scored
    at = {d["text"]: n for n, d in enumerate(CORPUS.documents)}
    for normalised, values in {False: found.values, True: found.normalised()}.items():
        both = zip(records[normalised], FOUND, strict=True)
        pairs = [
            (r["score"], values[r["query"], at[p["text"]]].item())
            for r, p in both
            if p["probe"] == "statement"
        ]
        a, b = np.array(pairs).T
        # float32, other batches
        assert len(a) == len(CORPUS.queries) and np.abs(a - b).max() < 1e-4 * np.abs(b).max()


def test_records_name_their_probe_and_query(scored):
    assert [(r["probe"], r["query"]) for r in scored[1][False]] == [
        (p["probe"], p["query"]) for p in FOUND
    ]


def test_scores_of_other_queries_or_documents_are_refused():
    for shape in ((1, len(FOUND)), (30, len(FOUND) - 1)):
        with pytest.raises(ValueError, match=f"shape .{shape[0]}, .*at least 30 queries"):
            probe_scores(FOUND, np.zeros(shape))


def test_the_summary_is_a_ratio_of_means_with_a_paired_error():
    rng = np.random.default_rng(0)
    base = rng.normal(5, 1, 400)
    records = [
        {"probe": p, "query": q, "score": s}
        for q, b in enumerate(base)
        for p, s in (("statement", b), ("paraphrase", b / 2), ("unrelated", rng.normal(0, 1)))
    ]
    one, half, none = summary(records)
    assert (one["relative"], one["relative_se"]) == (1, 0) and (
        half["relative"],
        half["relative_se"],
    ) == (0.5, 0)
    assert abs(none["relative"]) < 0.05 and none["relative_se"] == pytest.approx(
        1 / (5 * 20), rel=0.15
    )
    assert none["queries"] == 400


def test_a_probe_that_some_queries_lack_is_compared_with_its_own_queries_statements():
    records = [
        {"probe": "statement", "query": q, "score": s} for q, s in enumerate((1.0, 3.0, 100.0))
    ]
    records += [{"probe": "other subject", "query": q, "score": s} for q, s in ((0, 1.0), (1, 1.0))]
    assert summary(records)[1] | {"relative_se": None} == {
        "probe": "other subject",
        "relative": 0.5,
        "relative_se": None,
        "queries": 2,
    }


def test_sparsity_is_the_share_of_the_positive_tail():
    row = np.array([9.0, *[1.0] * 11, *[-5.0] * 88])
    found = sparsity(np.stack([row, -np.ones(100)]), share=0.01)
    assert found[0] == pytest.approx(0.45) and np.isnan(found[1])
    assert probes.sparsity(np.ones((1, 200)), 0.01)[0] == pytest.approx(0.01)
