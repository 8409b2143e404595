"""Every way of taking a score apart sums to the score: over document tokens, layers and,
by duality, query tokens."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.tiny import documents, gpt2, llama, neox, plain_loss, relative

from msif.core.data import NO_LOSS, Sequence
from msif.core.ekfac import fit
from msif.core.influence import NONE, Damping, Stage, precondition, query_gradients, score
from msif.core.layers import Tracked, tracked_layers
from msif.view.parts import answer_log_probabilities, extremes, query_tokens, split

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(build=neox, stages=2, dtype=torch.float64):
    models = [build(k).to(dtype) for k in range(stages)]
    data = [documents(6, seed=10 + k) for k in range(stages)]
    layers = tracked_layers(models[0], per_head=build is not gpt2)
    all_tracked = [Tracked(m, layers) for m in models]
    chain = [
        Stage(fit(each, d, samples=1), Damping(0.1), Damping(0.2) if k else NONE)
        for k, (each, d) in enumerate(zip(all_tracked, data))
    ]
    query = Sequence(0, (3, 1, 4, 1, 5, 9), (*[NO_LOSS] * 4, 5, 9))
    return SimpleNamespace(
        base=models[0],
        tuned=models[-1],
        tracked_base=all_tracked[0],
        tracked_tuned=all_tracked[-1],
        layers=layers,
        stages=chain,
        documents=data[0],
        query=query,
    )


def preconditioned(case):
    return precondition(query_gradients(case.tracked_tuned, [case.query]), case.stages)[0]


def scores_of(case):
    w = preconditioned(case)
    return score(case.tracked_base, case.documents, w).values[0], w


def dissected(case, ranked, **options):
    """The complete parts of the ranked documents: over their tokens, layers and the query's."""
    parts = split(case.tracked_base, preconditioned(case), case.documents, ranked, **options)
    models, chosen = (case.tracked_base, case.tracked_tuned), [case.documents[n] for n, _ in ranked]
    back = query_tokens(*models, case.query, case.stages, chosen, **options)
    return [replace(part, query_tokens=row) for part, row in zip(parts, back)]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("build, stages", [(neox, 1), (neox, 2), (neox, 3), (llama, 2), (gpt2, 2)])
def test_tokens_layers_and_query_tokens_sum_to_the_score(build, stages, dtype):
    case = pair(build, stages, dtype)
    values, _ = scores_of(case)
    ranked = extremes(values, 4, 2)
    for part in dissected(case, ranked):
        whole, bound = values[part.document].item(), TOLERANCE[dtype] * max(values.abs()).item()
        for split_over in (part.tokens, part.layers.values(), part.query_tokens, [part.score]):
            assert abs(sum(split_over) - whole) < bound
        assert len(part.tokens) == len(case.documents[part.document].input_ids)
        # the last token predicts nothing
        assert len(part.query_tokens) == 6 and part.query_tokens[-1] == 0
        assert list(part.layers) == [x.name for x in case.layers]
        assert max(map(abs, part.query_tokens[:-1])) > 0


def test_a_share_of_the_query_is_that_of_its_own_position():
    """Query positions before a loss count only through later ones:
    with the loss on the second token alone, position 0 has it all."""
    case = pair()
    case.query = Sequence(0, (3, 1, 4), (NO_LOSS, 1, NO_LOSS))
    for part in dissected(case, [(0, 1)]):
        assert part.query_tokens[0] == pytest.approx(part.score, rel=1e-10) and part.query_tokens[
            1:
        ] == [0, 0]


def test_parts_do_not_depend_on_batches_order_or_company():
    case = pair()
    ranked = extremes(scores_of(case)[0], 3, 3)
    once = dissected(case, ranked)
    for other in (
        dissected(case, ranked, batch_size=1),
        dissected(case, ranked[::-1])[::-1],
        [dissected(case, [x])[0] for x in ranked],
    ):
        for a, b in zip(once, other):
            assert (a.document, a.rank) == (b.document, b.rank)
            for left, right in (
                (a.tokens, b.tokens),
                (a.query_tokens, b.query_tokens),
                ([*a.layers.values()], [*b.layers.values()]),
            ):
                assert (
                    relative(
                        torch.tensor(left, dtype=torch.float64),
                        torch.tensor(right, dtype=torch.float64),
                    )
                    < 1e-9
                )


def test_documents_of_several_corpora_may_share_their_index():
    case = pair()
    expected = [part.score for part in dissected(case, [(1, 1), (2, 2)])]
    case.documents = [replace(x, index=0) for x in case.documents]
    assert [part.score for part in dissected(case, [(1, 1), (2, 2)])] == pytest.approx(expected)


def test_extremes_are_ranked_from_both_ends_with_ties_in_order():
    assert extremes([1.0, 3.0, 3.0, -2.0, -2.0, 0.0], 2, 3) == [
        (1, 1),
        (2, 2),
        (3, -1),
        (4, -2),
        (5, -3),
    ]
    assert extremes(torch.tensor([0.0, 0.0]), 5, 5) == [(0, 1), (1, 2)]  # no document is both
    assert extremes([2.0, 1.0], 0, 1) == [(1, -1)]


@pytest.mark.parametrize(
    "values, options", [([[1.0, 2.0]], {}), ([1.0, float("nan")], {}), ([1.0], {"opponents": -1})]
)
def test_bad_score_vectors_are_refused(values, options):
    with pytest.raises(ValueError, match="expected"):
        extremes(values, 1, **options)


def test_bad_requests_are_refused_with_what_is_wrong():
    case = pair()
    two = precondition(query_gradients(case.tracked_tuned, documents(2, seed=9)), case.stages)[0]
    with pytest.raises(ValueError, match=r"w holds \[2\] queries"):
        split(case.tracked_base, two, case.documents, [(0, 1)])
    with pytest.raises(ValueError, match="document 6 is ranked; there are 6"):
        dissected(case, [(6, 1)])
    stages = [case.stages[0], replace(case.stages[1], new=("head",))]
    with pytest.raises(ValueError, match="head"):
        query_tokens(
            case.tracked_base,
            case.tracked_tuned,
            case.query,
            stages,
            case.documents,
        )
    assert dissected(case, []) == []


def test_answer_log_probabilities_are_those_of_the_labelled_tokens():
    case = pair()
    (found,) = answer_log_probabilities(case.tuned, [case.query])
    assert len(found) == 2 and sum(found) == pytest.approx(
        -plain_loss(case.tuned, case.query).item()
    )
