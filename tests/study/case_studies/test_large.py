"""Factors and scores of a pair, in partitions and groups, against everything at once in memory."""

from dataclasses import replace

import pytest
import torch
from support.small_pair import build, inside, needs_data

from msif.core import ekfac
from msif.core.influence import Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked
from msif.scale.plan import plan_fit
from msif.study import scratch
from msif.study.beds import pairs
from msif.study.case_studies import large
from msif.study.corpora import neighbours

pytestmark = needs_data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(settings, case) inside a study of its own:
    factors of one layer of each of the two blocks."""
    with inside(tmp_path_factory.mktemp("study")) as folder:
        settings = build(folder)
        bed = pairs.prepared(0, **settings)
        yield settings, large.case(bed, pattern="dense_4h_to_h", samples=1, batch_size=4)


def at_once(case, stages):
    """The scores by `influence` alone, everything in memory."""
    w = precondition(
        query_gradients(Tracked(case.bed.model("finetuned"), case.layers), case.queries), stages
    )[0]
    return score(
        Tracked(case.bed.model("pretrained" if len(stages) == 2 else "finetuned"), case.layers),
        case.bed.documents,
        w,
    )


def test_factors_are_those_of_each_stages_own_data(made):
    _, case = made
    for name, data in (
        ("pretrained", pairs.factor_documents(case.bed)),
        ("finetuned", case.bed.finetuning),
    ):
        expected = ekfac.fit(
            Tracked(case.bed.model(name), case.layers), data, samples=1, batch_size=4
        )
        for layer in case.layers:
            a, b = case.factors[name].factors[layer.name], expected.factors[layer.name]
            assert torch.allclose(
                a.eigenvalues, b.eigenvalues, rtol=1e-4, atol=1e-6 * b.eigenvalues.max()
            )


def test_less_memory_means_more_partitions_and_the_same_factors(made, capsys):
    settings, case = made
    net = pairs.outline(**pairs.models(case.bed)["pretrained"])
    data = pairs.factor_documents(case.bed)
    lengths = [len(x.input_ids) for x in data]
    budget = max(plan_fit(Tracked(net, [x]), lengths, batch_size=4).peak for x in case.layers)
    many = len(plan_fit(Tracked(net, case.layers), lengths, batch_size=4, memory=budget).partitions)
    assert many > 1 == len(plan_fit(Tracked(net, case.layers), lengths, batch_size=4).partitions)
    bed, layers = case.bed, case.layers
    other = large.fitted(
        bed, "pretrained", layers, data, samples=1, batch_size=4, seed=0, memory=budget
    )
    assert f"partitions {many}" in capsys.readouterr().out
    for layer in layers:
        assert torch.equal(
            other.factors[layer.name].eigenvalues,
            case.factors["pretrained"].factors[layer.name].eigenvalues,
        )


@pytest.mark.parametrize(
    "setting", ["paper", "recommended", (Damping(1e-2), Damping(1.0))], ids=str
)
def test_scores_are_those_of_the_stages_for_each_querys_own_candidates(made, setting):
    _, case = made
    chain = large.chain(case, setting)
    raw, normalised = large.scored(case, {"multi": chain}, at_once=2)["multi"]
    expected = at_once(case, chain)
    for n, row in enumerate(case.rows):
        own = row["candidates"]
        assert torch.allclose(
            raw[n, own], expected.values[n, own], rtol=1e-3, atol=1e-4 * expected.values.abs().max()
        )
        assert torch.allclose(
            normalised[n, own],
            expected.normalised()[n, own],
            rtol=1e-3,
            atol=1e-4 * expected.normalised().abs().max(),
        )
        assert sorted(own) == raw[n].isfinite().nonzero()[:, 0].tolist()


def test_the_papers_damping_is_absolute_and_the_recommended_one_relative(made):
    first, second = large.chain(made[1], "paper")
    assert (
        first.damping.of(123.0),
        first.alpha.of(123.0),
        second.damping.of(123.0),
        second.alpha.of(123.0),
    ) == (1e-4, 0, 0, 2e-4)
    first, second = large.chain(made[1], "recommended")
    assert (first.damping.of(10.0), second.alpha.of(10.0)) == (
        pytest.approx(1e-2),
        pytest.approx(1.0),
    )


def test_one_stage_scores_at_the_fine_tuned_model_and_three_are_refused(made):
    _, case = made
    stage = Stage(case.factors["finetuned"], Damping(1e-2))
    raw, _ = large.scored(case, {"single": [stage]}, at_once=3)["single"]
    expected, own = at_once(case, [stage]).values, case.rows[0]["candidates"]
    assert torch.allclose(
        raw[0, own], expected[0, own], rtol=1e-3, atol=1e-4 * expected.abs().max()
    )
    with pytest.raises(ValueError, match="triple has 3 stages"):
        large.scored(case, {"triple": [stage] * 3})


def test_a_killed_run_goes_on_with_the_next_group(made, monkeypatch):
    _, case = made
    chain, real, calls = {"multi": large.chain(case, (Damping(0.5), Damping(0.5)))}, large.score, []

    def dies_in_the_second_group(*args, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(large, "score", dies_in_the_second_group)
    with pytest.raises(KeyboardInterrupt):
        large.scored(case, chain, at_once=2)
    found, _ = large.scored(case, chain, at_once=2)["multi"]
    assert len(calls) == 4, "three groups, of which the first was there"
    expected = at_once(case, chain["multi"]).values
    assert all(
        torch.allclose(
            found[n, row["candidates"]],
            expected[n, row["candidates"]],
            rtol=1e-3,
            atol=1e-4 * expected.abs().max(),
        )
        for n, row in enumerate(case.rows)
    )


def test_details_split_a_score_over_layers_and_tokens(made):
    _, case = made
    chain, chunks = large.chain(case, "recommended"), case.rows[1]["candidates"][:5]
    found, tokens = large.details(case, chain, 1, chunks)
    expected = large.scored(case, {"multi": chain}, at_once=2)["multi"][0][1, chunks]
    size = 1e-4 * expected.abs().max()
    assert torch.allclose(found.values[0], expected, rtol=1e-3, atol=size) and set(
        found.layers
    ) == {x.name for x in case.layers}
    assert torch.allclose(tokens.sum(1), expected, rtol=1e-3, atol=size)


def test_a_documents_score_is_the_sum_over_its_chunks_and_only_candidates_have_one(made):
    _, case = made
    chain, owner = large.chain(case, "recommended"), pairs.owners(case.bed)
    raw, _ = large.scored(case, {"multi": chain}, at_once=2)["multi"]
    documents = neighbours.of_documents(raw, owner)
    for n, row in enumerate(case.rows):
        there = {owner[k] for k in row["candidates"]}
        assert {d for d, x in enumerate(documents[n].tolist()) if x > -torch.inf} == there
        d = min(there)
        assert documents[n, d].item() == pytest.approx(
            sum(raw[n, k].item() for k in range(len(owner)) if owner[k] == d), rel=1e-4
        )


@pytest.mark.slow
def test_end_to_end_in_bfloat16_with_embeddings(tmp_path):
    """As the real profile: bfloat16 models, all linear layers of the blocks, all three searches;
    it finds and ranks the same twice."""
    with inside(tmp_path) as folder:
        settings = build(folder, "bfloat16") | {
            "search": {"methods": ["embeddings", "bm25", "tfidf"], "first": 2, "random": 2}
        }
        case = large.case(pairs.prepared(0, **settings), samples=1, batch_size=4, memory="8GiB")
        assert case.bed.model("finetuned").dtype == torch.bfloat16 and len(case.layers) == 8
        tables = [
            large.scored(
                case, {name: large.chain(case, name) for name in large.SETTINGS}, at_once=k
            )
            for k in (2, 5)
        ]
        assert all(set(row["found"]) == {"embeddings", "bm25", "tfidf"} for row in case.rows)
        for name in large.SETTINGS:
            a, b = (t[name][0] for t in tables)
            there = a.isfinite()
            assert (
                torch.equal(there, b.isfinite())
                and torch.corrcoef(torch.stack([a[there], b[there]]))[0, 1] > 0.999
            )
        again = large.case(pairs.prepared(0, **settings), samples=1, batch_size=4, memory="8GiB")
        assert again.key() == case.key() and scratch.code_digest(large.__name__)
        full = replace(
            case,
            bed=replace(
                case.bed, documents=[case.bed.documents[n] for n in case.rows[0]["candidates"]]
            ),
            queries=case.queries[:1],
        )
        expected = at_once(full, large.chain(case, "recommended")).values[0]
        found = tables[0]["recommended"][0][0, case.rows[0]["candidates"]]
        assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.99
