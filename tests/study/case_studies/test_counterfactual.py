"""What is left out is left out, of whom and nothing else;
and what is reported is what the retrained model says."""

import json

import numpy as np
import pytest
import torch

from msif.study.beds import retraining, testbed
from msif.study.beds.retraining import Recipe
from msif.study.case_studies import counterfactual
from msif.study.case_studies.counterfactual import Absence, Effect
from msif.study.corpora.corpus import generate
from msif.study.corpora.planted import planted_corpus

CORPUS = generate(0, fine_tuned=2, held_out=2, objects=2, near=0, fillers=5)
RECIPE = Recipe(
    CORPUS,
    dict(width=8, layers=1, heads=2),
    dict(epochs=2, rate=1e-2, batch_size=16),
    dict(epochs=1, rate=1e-2),
    32,
)
ROWS = CORPUS.queries[:4]


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(net):
    return torch.cat([p.flatten() for p in net.parameters()]).detach()


def test_leaving_documents_out_is_what_the_retraining_of_half_subsets_does():
    left_out = torch.zeros(len(CORPUS.documents), dtype=torch.bool)
    left_out[[1, 7]] = True
    ours = counterfactual.retrained(RECIPE, Absence((1, 7)), 3)[1]
    assert torch.equal(weights(ours), weights(retraining.retrained(RECIPE, left_out, 3)))


def test_a_fine_tuning_row_that_is_left_out_cannot_matter():
    other = [row | {"answer": "lima"} if n == 2 else row for n, row in enumerate(CORPUS.finetuning)]
    assert other[2] != CORPUS.finetuning[2]
    changed = Recipe(
        type(CORPUS)(CORPUS.documents, other, CORPUS.queries), *list(vars(RECIPE).values())[1:]
    )
    nets = [
        counterfactual.retrained(recipe, Absence(rows=(2,)), 0)[1] for recipe in (RECIPE, changed)
    ]
    assert torch.equal(*map(weights, nets))
    assert not torch.equal(
        weights(nets[0]), weights(counterfactual.retrained(RECIPE, Absence(), 0)[1])
    )


def test_an_outcome_is_what_the_model_says_and_is_kept(study):
    found = counterfactual.outcome(RECIPE, Absence((0,)), 1, ROWS)
    tokenizer, net = counterfactual.retrained(RECIPE, Absence((0,)), 1)
    assert found["says"] == [text for text, _ in testbed.answers(net, tokenizer, ROWS)]
    (kept,) = study.glob("scratch/counterfactual-*/value.json")
    kept.write_text(json.dumps(found | {"says": ["kept"]}))
    assert counterfactual.outcome(RECIPE, Absence((0,)), 1, ROWS)["says"] == ["kept"]


def test_groups_hold_every_answer_once_and_no_subject_or_answer_twice():
    rows = [dict(subject="abcd"[n % 4], answer="xyz"[n % 3]) for n in range(11)]
    found = counterfactual.groups(rows, 3)
    assert sorted(sum(found, [])) == list(range(11)) and max(map(len, found)) <= 3
    for group in found:
        assert (
            len({rows[n]["subject"] for n in group})
            == len({rows[n]["answer"] for n in group})
            == len(group)
        )


def test_an_answer_is_lost_when_it_flips_or_halves():
    before = np.array([[0.8, 0.8], [0.8, 0.8], [0.8, 0.8], [0.2, 0.2]])
    after = np.array([[0.7, 0.7], [0.3, 0.4], [0.7, 0.7], [0.2, 0.2]])
    yes, no = [True, True], [False, False]
    effect = Effect(
        before, after, np.array([yes, yes, yes, no]), np.array([yes, yes, no, no]), [["a"] * 2] * 4
    )
    assert effect.halved.tolist() == [False, True, False, False]
    assert effect.flipped.tolist() == [False, False, True, False]  # what was never said cannot flip
    assert effect.lost.tolist() == [False, True, True, False] and effect.share == (
        0.5,
        pytest.approx((0.25 / 8) ** 0.5),
    )
    assert effect.given.tolist() == [True, True, True, False] and effect.share_of_given[
        0
    ] == pytest.approx(2 / 3)
    assert effect.part(slice(1, 3)).share[0] == 1 and effect.part(slice(1, 3)).share[1] > 0


def test_a_removal_leaves_out_the_top_documents_of_each_group(study):
    scores = torch.rand(
        len(ROWS), len(CORPUS.documents), generator=torch.Generator().manual_seed(0)
    )
    found = counterfactual.removal(
        RECIPE, ROWS, {"random": scores}, top=2, together=2, seeds=[1], processes=1
    )["random"]
    for group in counterfactual.groups(ROWS, 2):
        absent = Absence(
            tuple(sorted({n for row in group for n in scores[row].topk(2).indices.tolist()}))
        )
        expected = counterfactual.outcome(RECIPE, absent, 1, ROWS)
        for n in group:
            assert found.says[n] == [expected["says"][n]] and found.after[n, 0] == np.exp(
                expected["log_probability"][n]
            )


def test_others_documents_are_of_answers_that_share_nothing(study):
    scores = torch.rand(
        len(ROWS), len(CORPUS.documents), generator=torch.Generator().manual_seed(0)
    )
    rows = [row | {"subject": f"s{n}"} for n, row in enumerate(ROWS)]
    few = counterfactual.groups(rows, 1)
    for n in range(len(rows)):
        other = counterfactual.stranger(rows, few, n)
        assert other is None or all(
            rows[m]["answer"] != rows[n]["answer"] and m != n for m in few[other]
        )
    found = counterfactual.removal(
        RECIPE, rows, {"ours": scores}, top=2, together=1, seeds=[1], processes=1
    )
    where = [counterfactual.stranger(rows, few, n) for n in range(len(rows))]
    if "others' documents" in found:
        for n, g in enumerate(where):
            absent = Absence(tuple(sorted(scores[few[g][0]].topk(2).indices.tolist())))
            assert found["others' documents"].says[n] == [
                counterfactual.outcome(RECIPE, absent, 1, rows)["says"][n]
            ]
    assert ("others' documents" in found) == (None not in where)


def test_memory_leaves_out_all_that_tells_the_facts(study, monkeypatch):
    """Questions, and biographies that tell them:
    no row that is left has both subject and answer."""
    seen = {}
    monkeypatch.setattr(
        counterfactual,
        "outcomes",
        lambda recipe, absences, seeds, rows, *rest: (
            seen.update(absences)
            or {name: [{"log_probability": [0.0] * len(rows)}] for name in absences}
        ),
    )
    corpus = planted_corpus(0, fine_tuned=2, held_out=1, taught=2, planted=2, fillers=5)
    facts = [row for row in corpus.finetuning if row.get("relation") in ("born in", "employer")]
    counterfactual.memory(Recipe(corpus, {}, {}, {}), facts, facts, seeds=[0])
    assert (
        seen["both"] == Absence(seen["documents"].documents, seen["fine-tuning rows"].rows)
        and seen["nothing"] == Absence()
    )
    rows = [
        f"{row['prompt']} {row['answer']}".split()
        for n, row in enumerate(corpus.finetuning)
        if n not in seen["both"].rows
    ]
    texts = [
        d["text"].split()
        for n, d in enumerate(corpus.documents)
        if n not in seen["both"].documents and d["kind"] == "statement"
    ]
    for fact in facts:
        assert not any(
            fact["subject"] in words and fact["answer"] in words for words in rows + texts
        )
    assert (
        len(rows) == len(corpus.finetuning) - len(seen["both"].rows) > 0
        and len(seen["both"].documents) == 2 * 2 * 4
    )
