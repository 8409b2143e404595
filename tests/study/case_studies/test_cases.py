"""Cases and their parts; and what a set of scores looks like inside."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.planted_study import planted_study

from msif.core.data import NO_LOSS, encode_answers
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked
from msif.study import metrics
from msif.study.case_studies import anatomy, cases, pages
from msif.study.case_studies.answers import answered
from msif.study.pipeline import report


@pytest.fixture(scope="module")
def study():
    return planted_study()


def test_draws_have_the_wanted_values_and_depend_on_the_seed_alone(study):
    few = cases.drawn(study.case, 3, seed=1, kind="query")
    assert few == cases.drawn(study.case, 3, seed=1, kind="query") and len(few) == 3
    assert all(study.case.rows[n]["kind"] == "query" for n in few)


def test_parts_have_each_query_s_own_candidates_and_the_same_numbers(study):
    queries = [
        row | {"candidates": [n, n + 2, 40]} for n, row in enumerate(study.case.bed.corpus.queries)
    ]
    case = replace(
        study.case,
        bed=replace(study.case.bed, corpus=replace(study.case.bed.corpus, queries=queries)),
    )
    parts = cases.portions(case, study.table)
    assert len(parts) == len(case.queries)
    for n, part in enumerate(parts):
        assert part.numbers == sorted({n, n + 2, 40}) and part.case.queries == [case.queries[n]]
        for name, values in part.table.items():
            assert torch.equal(values, study.table[name][[n]][:, part.numbers])
        assert [d["text"] for d in part.case.bed.corpus.documents] == [
            case.bed.corpus.documents[m]["text"] for m in part.numbers
        ]


def test_a_fact_of_a_biography_is_the_gradient_of_its_own_word_alone(study):
    case = study.case
    row = next(row for row in study.case.bed.corpus.finetuning if row["kind"] == "biography")
    told = answered(case, [row | {"proponents": []}])
    text = dict(told.rows[0], answer=row["answer"])
    query = encode_answers([row["prompt"]], [row["answer"]], case.bed.tokenizer, 64)
    told = replace(
        told,
        queries=query,
        bed=replace(told.bed, queries=query, corpus=replace(told.bed.corpus, queries=[text])),
    )
    for relation, template in cases.BIOGRAPHY.items():
        labelled = [
            t for t, y in enumerate(cases.word_of(told, 0, template).labels) if y != NO_LOSS
        ]
        assert [case.bed.tokenizer.decode([query[0].input_ids[t]]) for t in labelled] == [
            row["facts"][relation]
        ]
    assert set(cases.by_fact(told, [0], 1e-3, 0.1)) == set(cases.BIOGRAPHY)


def test_layer_shares_of_a_query_sum_to_one_in_each_stage(study):
    for stage, shares in anatomy.by_layer(study.case, 1e-3, 0.1).items():
        assert sum(shares.values()) == pytest.approx(np.ones(len(study.case.queries)), abs=1e-4), (
            stage
        )


def test_what_fine_tuning_passes_on_grows_with_alpha_towards_all(study):
    low, high = (
        np.mean(list(anatomy.passed_on(study.case, alpha).values())) for alpha in (0.1, 1e6)
    )
    assert 0 < low < high == pytest.approx(1, abs=1e-3)


def test_the_same_setting_agrees_with_itself_and_another_less(study):
    same, other = (
        anatomy.changed(study.case, study.case.chain(*at), study.case.chain(1e-3, 0.1))
        for at in ((1e-3, 0.1), (1.0, 0.1))
    )
    assert (
        same["spearman"] == pytest.approx(np.ones(len(study.case.queries)))
        and (same["top"] == 1).all()
    )
    assert other["spearman"].mean() < 0.999


def test_changed_settings_are_compared_with_the_plain_score(study):
    case = study.case
    w = precondition(
        query_gradients(Tracked(case.bed.model("finetuned"), case.layers), case.queries),
        [
            Stage(case.factors["pretrained"], Damping(1.0)),
            Stage(case.factors["finetuned"], alpha=Damping(0.1)),
        ],
    )[0]
    values = score(
        Tracked(case.bed.model("pretrained"), case.layers), case.bed.documents, w
    ).normalised()
    expected = metrics.spearman(values.numpy(), study.table["multi_stage/normalised"].numpy())
    assert anatomy.changed(case, case.chain(1.0, 0.1), case.chain(1e-3, 0.1))[
        "spearman"
    ] == pytest.approx(expected, abs=1e-3)


def test_refits_agree_more_with_more_data(study):
    less, more = (
        anatomy.refitted(study.case, 1, 1e-3, 0.1, share=share)["spearman"].mean()
        for share in (0.02, 1.0)
    )
    assert less < more < 1


def test_half_of_the_influence_and_its_holders():
    scores = np.array([[4.0, 1, 1, 1, 1, -9], [1, 1, 1, 1, 0, 0]])
    assert anatomy.half_held_by(scores).tolist() == [1, 2]
    assert anatomy.held(scores, [1, 2, 5])[0] == pytest.approx([0.5, 0.625, 1])


def test_precision_counts_ties_in_expectation():
    assert anatomy.precision([[3, 2, 1, 0]], [[0, 2]], top=2).tolist() == [0.5]
    assert anatomy.precision([[1, 1, 1, 1]], [[0]], top=2).tolist() == [0.25]


def test_kinds_of_the_top_documents_add_up(study):
    documents = study.case.bed.corpus.documents
    found = anatomy.kinds(documents, study.table["bm25/raw"], {d["kind"] for d in documents}, top=5)
    assert sum(found.values()) == pytest.approx(np.ones(len(study.case.queries)))


def page(path):
    return json.loads(
        re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", path.read_text(), re.S)[1]
    )


def test_the_explorer_shows_every_group_with_the_scores_of_the_table(study, tmp_path):
    path = pages.write(tmp_path / "x.html", study, "t", 1e-3, 0.1, each=1, count=2, opponents=1)
    again = pages.write(tmp_path / "y.html", study, "t", 1e-3, 0.1, each=1, count=2, opponents=1)
    assert path.read_bytes() == again.read_bytes() and report.elsewhere(path.read_text()) == []
    data = page(path)
    assert {"biography", "your own"} <= {q["group"] for q in data["queries"]}
    assert data["trained_on"] == len(study.case.bed.corpus.documents)
    for q in data["queries"]:
        n, (best, rank, value, _) = int(q["id"]), q["rankings"]["multi-stage, normalised"][0]
        scores = study.table["multi_stage/normalised"][n]
        assert (best, rank) == (scores.argmax().item(), 1) and value == float(
            f"{scores.max().item():.4g}"
        )
        assert (
            "".join(data["documents"][str(best)]["words"]).strip()
            == study.case.bed.corpus.documents[best]["text"]
        )
        assert set(q["labels"].values()) <= {
            "states it" if study.case.rows[n]["right"] else "states the truth"
        }


def test_withheld_pages_hold_no_words_of_documents_nor_of_answers(study, tmp_path):
    pages.write(tmp_path / "x.html", study, "t", 1e-3, 0.1, tmp_path / "y.html", each=2)
    data, shown = page(tmp_path / "y.html"), page(tmp_path / "x.html")
    assert [q["rankings"] for q in data["queries"]] == [q["rankings"] for q in shown["queries"]]
    assert all("withheld" in "".join(d["words"]) for d in data["documents"].values())
    for q in data["queries"]:
        ours = q["group"].startswith("planted")  # our own sentences, in every corpus
        assert bool(q["prompt"]) == bool(q["answer"]) == ours and (ours or not q["note"])


def test_what_a_document_says_of_an_answer():
    row = dict(subject="al", relation="born in", answer="oslo")
    one = dict(subject="bo", relation="born in", object="oslo", kind="statement")
    assert (
        cases.said(one, row) == "another subject"
        and cases.said(one | {"kind": "near"}, row)
        == cases.said(one | {"kind": "decoy"}, row)
        == "names the answer"
    )
    assert (
        cases.said(one | {"subject": "al"}, row) == "says so"
        and cases.said(one | {"subject": "al", "kind": "decoy"}, row) == "names both"
    )


def test_documents_behind_a_biography_count_for_the_relation_that_they_state(study):
    documents = study.case.bed.corpus.documents
    row = next(n for n, x in enumerate(study.case.rows) if x["kind"] == "biography")
    stating = [
        n
        for n, d in enumerate(documents)
        if d["kind"] == "statement"
        and (d["subject"], d["relation"]) == (study.case.rows[row]["subject"], "born in")
    ]
    scores = torch.zeros(1, len(documents))
    scores[0, stating] = 1
    found = anatomy.told(
        study.case, {"born in": ([row], scores), "language": ([row], scores)}, top=len(stating)
    )
    assert (
        found["born in", "born in"] == found["language", "born in"] == 1
        and found["language", "language"] == found["born in", "others"] == 0
    )


def test_a_given_pair_cannot_be_trained_again():
    with pytest.raises(ValueError, match="a given pair cannot be trained again: set it to null"):
        cases.plan({"models": {}}, [0], {"answers": 1})


def test_names_of_layers_without_what_they_share():
    assert cases.short_names(["m.layers.0.attn.qkv", "m.layers.1.mlp.up"]) == [
        "0 attn.qkv",
        "1 mlp.up",
    ]


def test_another_source_is_refused():
    with pytest.raises(ValueError, match="corpus source 'nope': expected one of"):
        pair = {"corpus": {"source": "nope"}, "model": {}, "pretraining": {}, "finetuning": {}}
        cases.study(0, pair, settings={})
