"""The published protocol of fact tracing, on a miniature in the published formats: invented people,
three relations of LAMA."""

import grimp
import pytest
from support.lama_miniature import miniature, tokenizer

from msif.core.data import NO_LOSS, encode_answers
from msif.rivals.retrieval import bm25
from msif.study.corpora import lama, trex

RELATIONS = """
    P17 P19 P20 P27 P30 P31 P36 P37 P39 P47 P101 P103 P106 P108 P127 P131 P136 P138 P140 P159 P176
    P178 P190 P264 P276 P279 P361 P364 P407 P413 P449 P463 P495 P527 P530 P740 P937 P1001 P1303
    P1376 P1412
""".split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The miniature inside a study of its own, which keeps scratch/."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return miniature(tmp_path / "data")


def corpus(folder, seed=42, **settings):
    return lama.lama_corpus(
        folder,
        seed,
        **{"queries": 8, "factor_documents": 10, "first": 4, "same_object": 3, "shared": 5}
        | settings,
    )


def test_every_relation_of_lama_has_one_question_with_one_subject():
    assert sorted(lama.QUESTIONS) == sorted(RELATIONS) and len(RELATIONS) == 41
    assert all(
        text.count("[X]") == 1 and text.endswith("?") and "[Y]" not in text
        for text in lama.QUESTIONS.values()
    )
    assert len(set(lama.QUESTIONS.values())) == 41


def test_proponents_state_the_fact_and_are_candidates(folder):
    found = corpus(folder)
    assert len(found.queries) == 8
    for row in found.queries:
        stating = [n for n, d in enumerate(found.documents) if row["fact"] in d["facts"]]
        assert (
            row["proponents"] == stating
            and len(stating) == 2
            and set(stating) <= set(row["candidates"])
        )
        assert (
            row["prompt"] == lama.QUESTIONS[row["fact"][1]].replace("[X]", row["subject"])
            and row["answer"] == row["object"]
        )


def test_candidates_are_the_union_of_the_four_sets(folder):
    """Recomputed with one set at a time; the shared ones are the same for all queries,
    the others are the query's own."""

    def sets(**sizes):
        found = corpus(folder, **{"first": 0, "same_object": 0, "shared": 0} | sizes)
        text = [d["text"] for d in found.documents]
        return [
            ({text[n] for n in row["candidates"]}, {text[n] for n in row["proponents"]}, row)
            for row in found.queries
        ]

    shared = [own - stating for own, stating, _ in sets(shared=5)]
    union = set().union(*shared)
    assert len(union) == 5 and all(
        union - own <= stating for own, (_, stating, _) in zip(shared, sets(shared=5))
    )
    everything = [x["text"] for x in trex.statements(folder, trex.read_facts(folder))]
    for own, stating, row in sets(first=1000):
        scores = bm25(everything, [f"{row['prompt']} {row['answer']}"])[0]
        assert (
            own
            == stating | {text for text, score in zip(everything, scores) if score > 0}
            < set(everything)
        )
    for own, stating, row in sets(same_object=3):
        assert len(own - stating) == 3 and all(row["object"] in text for text in own)
    assert all(own == stating for own, stating, _ in sets())
    for whole, parts in zip(sets(first=4, shared=5), zip(sets(first=4), sets(shared=5))):
        assert whole[0] == parts[0][0] | parts[1][0]


def test_search_is_by_words(folder):
    """By characters, as in the released code,
    an anagram of the question would be the best match."""
    facts, row = trex.read_facts(folder), corpus(folder, queries=1, relations=["P19"]).queries[0]
    texts = [x["text"] for x in trex.statements(folder, facts)] + [
        f"{row['prompt']} {row['answer']}"[::-1]
    ]
    scores = bm25(texts, [f"{row['prompt']} {row['answer']}"])[0]
    assert (
        scores[-1] == 0
        and row["subject"] in texts[scores.argmax()]
        and row["answer"] in texts[scores.argmax()]
    )
    row = corpus(folder, queries=1, relations=["P19"], first=1, same_object=0, shared=0).queries[0]
    assert len(row["candidates"]) == 2


def test_a_random_sample_comes_first_and_then_what_only_queries_need(folder):
    found = corpus(folder, factor_documents=10)
    wanted = {n for row in found.queries for n in row["candidates"]}
    assert {n for n, d in enumerate(found.documents) if d["kind"] == "candidate"} == wanted
    assert (
        all(n < 10 for n in range(len(found.documents)) if n not in wanted)
        and len(found.documents) > 10
    )
    assert len({d["text"] for d in found.documents}) == len(found.documents)


def test_equal_seeds_give_equal_experiments_and_others_do_not(folder):
    assert corpus(folder).digest() == corpus(folder).digest() != corpus(folder, seed=43).digest()


def test_loss_is_on_the_tokens_of_the_object_alone(folder):
    found, reader = corpus(folder), tokenizer(folder)
    rows = encode_answers(
        [r["prompt"] for r in found.queries], [r["answer"] for r in found.queries], reader, 64
    )
    for row, encoded in zip(found.queries, rows):
        scored = [
            token for token, label in zip(encoded.input_ids, encoded.labels) if label != NO_LOSS
        ]
        assert reader.decode(scored).strip() == row["answer"]


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"relations": ["P19", "P999"]}, "P999 unknown; .*P106, P1303, P19"),
        (
            {"questions": {"P19": "Where was [X] born?", "P106": "What?"}},
            "no question for P106, P1303: .*exactly one",
        ),
        ({"queries": 37}, "queries is 37; expected 1 to 36"),
    ],
)
def test_a_setting_that_is_not_possible_is_refused(settings, says, folder):
    with pytest.raises(ValueError, match=says):
        corpus(folder, **settings)


def test_relations_and_questions_are_checked_before_long_work(folder, monkeypatch):
    monkeypatch.setattr(trex, "stating_sentences", lambda *_: pytest.fail("T-REx was read"))
    for settings in ({"relations": ["P999"]}, {"questions": {}}):
        with pytest.raises(ValueError, match="P999 unknown|no question for"):
            corpus(folder, **settings)


def test_fine_tuning_rows_are_a_random_sample_that_fits(folder):
    reader, source = tokenizer(folder), str(folder / "xp3.jsonl")
    rows = lama.fine_tuning_rows(folder, reader, 24, source=source, limit=40)
    assert 35 <= len(rows) <= 40 and rows == lama.fine_tuning_rows(
        folder, reader, 24, source=source, limit=40
    )
    assert rows != lama.fine_tuning_rows(folder, reader, 24, source=source, limit=40, seed=1)
    encode_answers([r["prompt"] for r in rows], [r["answer"] for r in rows], reader, 24)
    every = lama.fine_tuning_rows(folder, reader, 24, source=source, limit=1000)
    # cut, not left out
    assert len(every) == 100 and sum(row["prompt"].count("?") > 1 for row in every) == 10
    assert all(row["prompt"].endswith("?") for row in every)


def test_fine_tuning_rows_come_from_a_folder_of_a_data_set_too(folder):
    rows = lama.fine_tuning_rows(
        folder, tokenizer(folder), 64, source=str(folder), files="xp3.jsonl", limit=30
    )
    assert len({row["prompt"] for row in rows}) > 20 and {row["kind"] for row in rows} == {"row"}


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"prompt": "question"}, "no column 'question'; its columns are inputs, targets"),
        ({"max_length": 1}, "none of 5 rows"),
    ],
)
def test_fine_tuning_rows_that_cannot_be_are_refused(settings, says, folder):
    length = settings.pop("max_length", 24)
    with pytest.raises(ValueError, match=says):
        lama.fine_tuning_rows(
            folder, tokenizer(folder), length, source=str(folder / "xp3.jsonl"), limit=5, **settings
        )


def test_an_edited_score_does_not_prepare_the_experiments_again():
    """What `scratch` hashes for them: lama and all that it imports,
    among which scores must not be."""
    found = grimp.build_graph("msif").find_upstream_modules("msif.study.corpora.lama")
    assert "msif.study.corpora.pinned" in found
    assert not [
        x for x in found if x.startswith("msif.study.tracing") or x == "msif.core.influence"
    ]
