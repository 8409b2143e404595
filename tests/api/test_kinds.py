"""A folder of adapters, and a stage of preferences, through the front door."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.own_pair import add_adapters, build

import msif
from msif.core import capture, ekfac, influence, preferences, store
from msif.core.objectives import loss
from msif.core.stages import Damping, Stage
from msif.curvature.lora import LoRA

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:the largest score:UserWarning"),  # tiny data
    pytest.mark.filterwarnings("ignore:.*knows these documents no better than chance"),
    pytest.mark.filterwarnings("ignore:.*gets its own fine-tuning rows wrong"),
    pytest.mark.filterwarnings("ignore:.*does not prefer what its pairs chose"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
FILE = "model.safetensors"
MISSING = "with their cross term is missing: put it back"
ASK = [("Where was Gus born?", "Rome"), ("Where was Hal born?", "Oslo")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = build(tmp_path_factory.mktemp("pair"))
    add_adapters(made)
    return made


@pytest.fixture(scope="module")
def models(folder):
    return msif.load(folder / "base"), msif.load(folder / "lora")


@pytest.fixture(scope="module")
def given(folder, models):
    base, tuned = models
    return base.documents(folder / "documents.jsonl"), tuned.answers(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def stages(models, given):
    (base, tuned), (docs, rows) = models, given
    return [
        msif.Stage(base, msif.fit(base, docs), damping=1e-3),
        msif.Stage(tuned, msif.fit(tuned, rows), alpha=0.1),
    ]


@pytest.mark.parametrize("stage", [0, 1])
def test_a_lora_folder_stands_in_place_of_the_tuned_model(models, given, stages, stage, tmp_path):
    """The scores are the engine's; a folder's are those in memory (1e-4: float32, written)."""
    (base, tuned), (docs, rows) = models, given
    scores = msif.trace(stages, ASK, given[stage], stage=stage)
    mean = capture.mean_gradient(tuned.tracked, rows, loss)
    chain = [
        Stage(ekfac.fit(base.tracked, docs), Damping(1e-3)),
        LoRA(
            ekfac.fit(tuned.tracked, rows),
            alpha=Damping(0.1),
            adapters=tuned.adapters,
            mean=mean,
            remainder=False,
        ),
    ]
    query = influence.query_gradients(tuned.tracked, tuned.questions(ASK))
    w = influence.precondition(query, chain)[stage]
    expected = influence.score(models[stage].tracked, given[stage], w).values
    assert torch.allclose(scores.values, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    kept = [
        msif.Stage(base, msif.fit(base, docs, folder=tmp_path), damping=1e-3),
        msif.Stage(tuned, msif.fit(tuned, rows, folder=tmp_path), alpha=0.1),
    ]
    again = msif.trace(kept, ASK, given[stage], stage=stage, folder=tmp_path)
    assert torch.allclose(again.values, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    read = msif.load_factors(tmp_path, tuned)
    assert all(torch.equal(x, stages[1].factors.mean[name]) for name, x in read.mean.items())
    assert read.mean.keys() == tuned.adapters.keys()


def test_what_is_scored_is_told_by_adapters_decay_and_remainder(models, given, stages, tmp_path):
    docs = given[0]
    tuned, factors = stages[1].model, stages[1].factors
    others = [{}, {"decay": 0.1}, {"remainder": True}]
    for options in others:
        last = msif.Stage(tuned, factors, alpha=1.0, **options)
        msif.trace([stages[0], last], ASK, docs, folder=tmp_path)
    assert len(list(tmp_path.glob("scores-*"))) == len(others)


def test_layers_without_adapters_and_base_weights_are_the_base_s(models):
    base, tuned = models
    adapted = {x.rpartition(".")[2] for x in tuned.adapters}
    assert adapted == {"q_proj", "v_proj", "down_proj"}
    for name, p in base.tracked.model.named_parameters():
        same = torch.equal(p, tuned.tracked.model.get_parameter(name))
        assert same == (name.removesuffix(".weight") not in tuned.adapters)


def test_the_base_may_be_somewhere_else(folder, models, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder / "base", moved)
    shutil.copytree(folder / "lora", tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "gone"}))
    found = msif.load(tmp_path / "lora", base=moved)
    for name, p in found.tracked.model.named_parameters():
        assert torch.equal(p, models[1].tracked.model.get_parameter(name))
    with pytest.raises(OSError, match="gone"):
        msif.load(tmp_path / "lora")
    more = {"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}
    save_file(load_file(moved / FILE) | more, moved / FILE, {"format": "pt"})
    with pytest.raises(ValueError, match="moved' have 1 tensors that its .* would not read"):
        msif.load(tmp_path / "lora", base=moved)


def test_wrong_turns_end_in_one_sentence(folder, models, given, stages):
    base, tuned = models
    with pytest.raises(ValueError, match="has no adapters that could be put on it"):
        msif.load(folder / "tuned", base=folder / "base")
    with pytest.raises(ValueError, match="no tracked layer has an adapter"):
        msif.load(folder / "lora", pattern="o_proj")
    with pytest.raises(ValueError, match="decay and remainder are for adapters"):
        msif.Stage(base, stages[0].factors, decay=0.1)
    with pytest.raises(ValueError, match="has adapters: expected factors that `msif.fit`"):
        msif.Stage(tuned, ekfac.fit(tuned.tracked, given[1]))
    pairs = tuned.preferences(["Where was Bo born?"], ["Paris"], ["London"])
    with pytest.raises(ValueError, match="pairs without start"):
        msif.fit(base, pairs)
    with pytest.raises(ValueError, match="only pairs have a reference model"):
        msif.fit(base, given[0], start=base)


def test_a_chain_ends_in_preferences_whose_pairs_can_be_scored(
    folder, models, given, stages, tmp_path
):
    """Base → adapters → another model by DPO: documents in a folder, pairs in memory."""
    last = msif.load(folder / "tuned")
    names = ["Ada", "Bo", "Cy"]
    prompts = [f"Where was {x} born?" for x in names]
    pairs = last.preferences(
        prompts, ["London", "Paris", "Rome"], ["Oslo", "Oslo in Paris", "Oslo"]
    )
    fitted = msif.fit(last, pairs, start=models[1], b=0.5)
    chain = [*stages, msif.Stage(last, fitted, alpha=0.01)]
    scores = msif.trace(chain, ASK, given[0])
    kept = msif.fit(last, pairs, start=models[1], b=0.5, folder=tmp_path)
    again = msif.Stage(last, kept, alpha=0.01)
    written = msif.trace([*stages, again], ASK, given[0], folder=tmp_path)
    assert torch.allclose(written.values, scores.values, rtol=1e-4, atol=1e-3)
    found = msif.trace(chain, ASK, pairs, stage=2)
    query = influence.query_gradients(last.tracked, last.questions(ASK))
    w = influence.precondition(query, [x.core for x in chain])[2]
    objective = preferences.against(models[1].tracked.model, pairs, 0.5)
    expected = influence.score(last.tracked, pairs, w, objective=objective).values
    assert torch.equal(found.values, expected)
    assert "≻ Where was Bo born? Oslo in Paris" in found.table(width=100)
    with pytest.raises(ValueError, match="pairs are scored in memory"):
        msif.trace(chain, ASK, pairs, stage=2, folder=tmp_path)
    with pytest.raises(ValueError, match="pairs for stage 1: expected a later stage"):
        msif.trace(chain, ASK, pairs, stage=1)
    for others in (*given, models[0].stream(folder / "documents.jsonl")):
        with pytest.raises(ValueError, match="stage 2, which was fitted on pref.* of its pairs"):
            msif.trace(chain, ASK, others, stage=2)


def of_preferences(folder, models, place=None):
    """A model and the factors of pairs that it prefers, kept in a place."""
    last = msif.load(folder / "tuned")
    pairs = last.preferences(["Where was Bo born?"] * 2, ["Paris", "Rome"], ["London", "Oslo"])
    return last, msif.fit(last, pairs, start=models[1], folder=place)


def test_preferences_that_lost_their_cross_term_are_refused_and_never_traced_as_rows(
    folder, models, tmp_path
):
    """Without it T is α (H + α)⁻¹, that of plain fine-tuning: other scores, with nothing said."""
    last, factors = of_preferences(folder, models, tmp_path)
    [place] = tmp_path.glob("factors-*")
    cross = place.with_name(f"cross-{place.name}.safetensors")
    copied = tmp_path / "copy" / "mine"
    shutil.copytree(place, copied)
    with pytest.raises(store.FactorsError, match=f"cross-mine.safetensors .*{MISSING}"):
        msif.load_factors(copied, last)
    shutil.copy(cross, copied.with_name("cross-mine.safetensors"))
    with pytest.raises(ValueError, match="a file of something else, copied or renamed"):
        msif.load_factors(copied, last)
    cross.rename(tmp_path / "away")
    for where in (tmp_path, place):
        with pytest.raises(store.FactorsError, match=f"{cross.name} .*{MISSING}"):
            msif.load_factors(where, last)
    (tmp_path / "away").rename(cross)
    for alone in (store.load(place, last.tracked), store.load(copied), plain(factors)):
        with pytest.raises(ValueError, match="cross term is not with them"):
            msif.Stage(last, alone, alpha=0.1)
    read = msif.load_factors(place, last)
    assert all(torch.equal(x, factors.cross[name]) for name, x in read.cross.items())
    assert msif.Stage(last, read, alpha=0.1).core.cross is not None


def test_factors_of_other_preferences_under_this_name_are_refused(folder, models, tmp_path):
    last, _ = of_preferences(folder, models, tmp_path / "mine")
    [place] = (tmp_path / "mine").glob("factors-*")
    others = last.preferences(["Where was Cy born?"], ["Rome"], ["Oslo"])
    msif.fit(last, others, start=models[1], b=0.3, folder=tmp_path / "others")
    [other] = (tmp_path / "others").glob("factors-*")
    shutil.rmtree(place)
    shutil.copytree(other, place)
    with pytest.raises(store.FactorsError, match="holds factors with another data and b "):
        of_preferences(folder, models, tmp_path / "mine")


def test_pairs_that_the_stage_has_not_learnt_are_called_out(folder, models):
    """From base/ to tuned/ the odds of right places grow; of pairs exchanged, they fall."""
    base, last = models[0], msif.load(folder / "tuned")
    asked = [f"Where was {x} born?" for x in ("Ada", "Bo", "Cy")]
    right, wrong = ["London", "Paris", "Rome"], ["Oslo", "Oslo", "Oslo"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        msif.fit(last, last.preferences(asked, right, wrong), start=base)
    assert not [x for x in said if "does not prefer" in str(x.message)]
    with pytest.warns(UserWarning, match="does not prefer what its pairs chose: .* grown in 0%"):
        msif.fit(last, last.preferences(asked, wrong, right), start=base)


def plain(factors):
    return ekfac.EKFAC(factors.factors, factors.header)


def test_a_folder_of_factors_is_not_written_of_what_it_does_not_hold(
    folder, models, stages, tmp_path
):
    _, preferred = of_preferences(folder, models)
    for factors, what in ((preferred, "cross"), (stages[1].factors, "mean")):
        with pytest.raises(store.FactorsError, match=f"have {what} besides.*msif.load_factors"):
            store.save(factors, tmp_path / "factors")
        assert not (tmp_path / "factors").exists()
    store.save(plain(preferred), tmp_path / "factors")
    store.save(stages[0].factors, tmp_path / "of the base")


def test_numbers_of_numpy_name_the_same_preferences_and_adapters(
    folder, models, given, stages, tmp_path
):
    last = msif.load(folder / "tuned")
    pairs = last.preferences(["Where was Bo born?"], ["Paris"], ["London"])
    for number in (float, np.float32, np.float64):
        found = msif.fit(last, pairs, start=models[1], b=number(0.5), folder=tmp_path)
        assert type(found.header["b"]) is float
        adapted = msif.Stage(models[1], stages[1].factors, alpha=0.1, decay=number(0.25))
        msif.trace([stages[0], adapted], ASK, given[0], folder=tmp_path)
    assert all(len(list(tmp_path.glob(f"{x}-*/"))) == 1 for x in ("factors", "scores"))
    for b in ("0.5", True, 0, float("nan")):
        with pytest.raises(ValueError, match="DPO's b is .*: expected a finite number > 0"):
            msif.fit(last, pairs, start=models[1], b=b)


def test_what_lies_beside_factors_is_found_however_their_folder_is_named(
    folder, models, tmp_path, monkeypatch
):
    last, factors = of_preferences(folder, models, tmp_path / "work")
    [place] = (tmp_path / "work").glob("factors-*")
    (tmp_path / "linked").symlink_to(place)
    monkeypatch.chdir(place)
    for where in (".", "..", f"../{place.name}", "../../linked", place):
        assert msif.load_factors(where, last).cross.keys() == factors.cross.keys()


def test_stages_that_do_not_follow_each_other_are_called_out(folder, models, given, stages):
    base, tuned = models
    pairs = base.preferences(["Where was Bo born?"], ["Paris"], ["London"])
    other = msif.load(folder / "tuned")
    last = msif.Stage(tuned, msif.fit(tuned, pairs, start=other), alpha=0.1)
    with pytest.raises(ValueError, match="fitted with another start than .*base"):
        msif.trace([stages[0], last], ASK, given[0])
    first = msif.Stage(other, msif.fit(other, given[1]), damping=0.1)
    with pytest.warns(UserWarning, match="lora are not on the weights of .*tuned"):
        msif.trace([first, stages[1]], ASK, given[1])


def test_a_plan_says_what_adapters_and_preferences_take(models, given):
    (base, tuned), (_, rows) = models, given
    timed = msif.plan(tuned, rows, seconds=0.1)
    assert timed.adapters.layers == 6 and timed.time > 0 and timed.held == 0
    assert "on this machine" in str(timed) and str(timed).endswith(str(timed.adapters))
    pairs = tuned.preferences([x for x, _ in ASK], ["Rome", "Oslo"], ["Oslo", "Rome"])
    fit, score = msif.plan(tuned, pairs), msif.plan(tuned, pairs, questions=3)
    assert fit.tokens == sum(len(y.input_ids) for x in pairs for y in (x.chosen, x.rejected))
    assert fit.held > fit.model and fit.adapters == timed.adapters
    assert (score.documents, score.queries, score.disk) == (2, 3, 0)
    with pytest.raises(MemoryError, match="all layers at once, which needs .* the budget"):
        msif.plan(tuned, pairs, memory=fit.peak - 1)
    assert len(msif.plan(tuned, pairs, memory=fit.peak).partitions) == 1
    forward = fit.forward  # margins 2, there and back 3 × 2 at the end and 2 at the start; mean 3
    assert fit.model_flops == 13 * forward and score.model_flops == 3 * forward
    each = [len(x.chosen.input_ids) + len(x.rejected.input_ids) for x in pairs]
    assert fit.product_flops == sum(
        sum(each) * (i * i + o * o)  # covariances, and three times rotated gradients of pairs
        + 6 * sum(min(s, o) * i * i + min(s, i) * o * o + s * o * i for s in each)
        for i, o in ((x.inputs, x.out_features) for x in tuned.tracked.layers)
    )
    for known in (
        msif.plan(tuned, pairs, seconds=0.1, questions=3),
        msif.plan(tuned, pairs, seconds=0.1),
    ):
        assert known.time > 0 and "on this machine" in str(known)
    with pytest.raises(ValueError, match="memory is '1GiB', keep 0, and preferences are fitted in"):
        msif.fit(tuned, pairs, start=base, memory="1GiB")
    with pytest.raises(ValueError, match="the model is a str: expected a msif.Model"):
        msif.fit(tuned, pairs, start="base")
