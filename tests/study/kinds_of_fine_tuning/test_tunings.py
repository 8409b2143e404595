"""Three fine-tunings of one model: what they are trained on, what they leave alone, and what is
scored."""

import pytest
import torch
from support.tiny import relative

from msif.core import adapters, influence, pairs, preferences
from msif.core.data import NO_LOSS, collate
from msif.core.models import logits
from msif.study import scratch
from msif.study.beds import retraining
from msif.study.corpora import corpus
from msif.study.kinds_of_fine_tuning import again, named, tracing, tunings
from msif.study.kinds_of_fine_tuning.treatments import IDENTITY, OWN, SINGLE
from msif.study.kinds_of_fine_tuning.tunings import AGAIN, DPO, FULL, KINDS, LORA

pytest.importorskip("peft")
PEOPLE = corpus.generate(fine_tuned=2, held_out=2, objects=4, near=1, fillers=4)
SETTINGS = {
    "full": {"epochs": 2, "rate": 3e-3, "batch_size": 8},
    "lora": {"rank": 1, "scale": 4.0, "epochs": 2, "rate": 3e-3, "batch_size": 8},
    "dpo": {"b": 0.5, "epochs": 2, "rate": 1e-3, "batch_size": 8},
}
RECIPE = retraining.Recipe(
    PEOPLE,
    {"width": 16, "layers": 1, "heads": 2},
    {"epochs": 6, "rate": 1e-2, "batch_size": 16},
    SETTINGS["full"],
)
FITS = {"b": 0.5, "documents": 60, "batch_size": 16}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("scratch")
        patch.setattr(scratch.paths, "scratch", lambda *parts: folder.joinpath(*parts))
        x = tunings.tuned(RECIPE, 0, SETTINGS)
        scores = tracing.scored(x, damping=0.01, alpha=0.1, single_stage_damping=0.01, **FITS)
        over = tracing.over_settings(x, [0.1, 1.0], damping=0.01, **FITS)
        left_out = retraining.half_subsets(len(PEOPLE.documents), 2)
        outcomes = again.outcomes(RECIPE, SETTINGS, left_out, [5], 1)
        yield x, scores, over, outcomes


def test_a_pair_is_the_right_answer_over_another_object_of_its_relation(found):
    x, *_ = found
    assert len(x.pairs) == len(PEOPLE.finetuning)
    for pair, row, encoded in zip(x.pairs, PEOPLE.finetuning, x.bed.finetuning):
        assert pair.chosen == encoded
        answers = [
            x.bed.tokenizer.decode([i for i in side.labels if i != NO_LOSS])
            for side in (pair.chosen, pair.rejected)
        ]
        assert answers[0] == row["answer"] != answers[1]
        assert answers[1] in corpus.words(row["relation"], 4)
        prompts = [
            side.input_ids[: -sum(i != NO_LOSS for i in side.labels)]
            for side in (pair.chosen, pair.rejected)
        ]
        assert prompts[0] == prompts[1]


def test_each_kind_moves_what_it_trains_and_the_base_stays(found):
    x, *_ = found
    base = x.bed.model("pretrained").state_dict()
    assert all(torch.equal(y, base[name]) for name, y in x.base.tracked.model.state_dict().items())
    moved = {
        kind: {
            name
            for name, y in end.tracked.model.state_dict().items()
            if not torch.equal(y, base[name])
        }
        for kind, end in x.ends.items()
    }
    assert moved[LORA] == {f"{name}.weight" for name in x.ends[LORA].adapters}
    assert set(x.ends[LORA].adapters) == set(x.base.tracked.names)
    assert len(moved[FULL]) > len(moved[LORA]) and moved[DPO] == moved[FULL] == moved[AGAIN]


def test_training_by_preferences_raises_their_margin(found):
    x, *_ = found
    before, after = (preferences.margins(x.ends[k].tracked.model, x.pairs) for k in (LORA, DPO))
    assert after.mean() > before.mean()


def test_one_step_of_preferences_is_adamw_on_the_loss_of_dpo(found):
    """A single batch of all pairs: each weight moves by the rate, against its gradient."""
    x, *_ = found
    start = x.ends[LORA].tracked.model
    settings = {"epochs": 1, "rate": 1e-4, "batch_size": len(x.pairs)}
    net = tunings.by_preferences(start, x.pairs, b=0.5, seed=0, **settings)
    loss = preferences.against(start, x.pairs, 0.5)
    batch = collate(pairs.rows_of(x.pairs))
    p = dict(start.requires_grad_(True).named_parameters())
    loss(logits(start, batch), batch).mean().backward()
    for name, y in net.named_parameters():
        g = p[name].grad
        clear = g.abs() > 1e-4 * g.abs().max()
        step = (y - p[name])[clear]
        assert relative(step, -1e-4 * g.sign()[clear]) < 1e-2, name
    start.zero_grad(set_to_none=True)


def test_adapters_are_those_that_peft_trained(found):
    x, *_ = found
    base = x.bed.model("pretrained")
    nets = tunings.finetuned(base, x.bed.finetuning, x.pairs, 0, SETTINGS, [LORA])
    assert set(nets) == {LORA}
    plain, own = adapters.taken_from(nets[LORA])
    for name, adapter in own.items():
        assert adapter.scale == 4.0 and len(adapter.A) == 1
        assert torch.equal(adapter.A, x.ends[LORA].adapters[name].A)
    merged = tunings.merged(nets[LORA]).state_dict()
    there = x.ends[LORA].tracked.model.state_dict()
    assert all(torch.equal(y, there[name]) for name, y in merged.items())


def test_scores_of_the_own_treatment_are_those_of_msif_trace(found):
    import msif

    x, scores, *_ = found
    stages = [msif.Stage(x.base, tracing.factors(x, **FITS)["base"], damping=0.01)]
    stages += tracing.later_stages(x, DPO, alpha=0.1, **FITS)
    theirs = msif.trace(stages, x.bed.queries, x.bed.documents)
    assert relative(scores[f"{DPO}/{OWN}/raw"], theirs.values) < 1e-4
    assert relative(scores[f"{DPO}/{OWN}/normalised"], theirs.normalised()) < 1e-4


def test_without_a_later_stage_the_kinds_differ_by_their_query_alone(found):
    x, scores, *_ = found
    stage = influence.Stage(tracing.factors(x, **FITS)["base"], influence.Damping(0.01))
    for kind in KINDS:
        q = influence.query_gradients(x.ends[kind].tracked, x.bed.queries)
        w = stage.inverse(q)
        expected = influence.score(x.base.tracked, x.bed.documents, w).values
        assert relative(scores[f"{kind}/{IDENTITY}/raw"], expected) < 1e-4


def test_the_scores_over_settings_are_those_of_one_setting(found):
    """α = .1 is what `scored` was given; `single` has its d for it, which is .01 there."""
    x, scores, over, _ = found
    for kind in KINDS:
        name = f"{kind}/{OWN}/normalised"
        assert relative(over[name][0], scores[name]) < 1e-5 and len(over[name]) == 2
    lower = tracing.over_settings(x, [0.01], damping=0.01, **FITS)
    name = f"{KINDS[0]}/{SINGLE}/raw"
    assert relative(lower[name][0], scores[name]) < 1e-5


def test_a_retraining_that_leaves_nothing_out_is_the_first_training(found):
    """Each kind's outcome is f at the model of the same seed."""
    x, _, _, outcomes = found
    assert {kind: tuple(y.shape) for kind, y in outcomes.items()} == {
        kind: (2, 1, len(PEOPLE.queries)) for kind in KINDS
    }
    nothing = torch.zeros(len(PEOPLE.documents), dtype=torch.bool)
    same = again.outcome(RECIPE, SETTINGS, nothing, 0)
    for kind in KINDS:
        f = retraining.measured(x.ends[kind].tracked.model, x.bed.queries)["log_probability"]
        assert relative(same[kind], f) < 1e-4


def test_what_two_lists_share_and_what_one_alone_names():
    one, other = [[1, 2, 3, 4], [5, 6, 7, 8]], [[4, 3, 9, 10], [0, 1, 2, 3]]
    assert named.shared(one, other).tolist() == [0.5, 0.0]
    assert named.only(one, other) == [[1, 2], [5, 6, 7, 8]]
    assert named.top(torch.tensor([[0.1, 0.3, 0.2]]), 2) == [[1, 2]]


def test_the_classes_of_documents_are_of_the_fact_that_is_asked_for():
    query = PEOPLE.queries[0]
    found = {n: named.what(d, query) for n, d in enumerate(PEOPLE.documents)}
    assert {n for n, x in found.items() if x == named.CLASSES[0]} == set(query["proponents"])
    share = named.shares([query["proponents"], []], PEOPLE.documents, PEOPLE.queries[:2])
    assert share[named.CLASSES[0]] == 1.0 and sum(share.values()) == 1.0
