"""What has no meaning is refused in memory and in folders alike, before any pass."""

import pytest
import torch
from support.begun import DAMPING, DATA
from support.indexed import indexed
from support.tiny import neox

from msif.core import ekfac, influence, queries
from msif.core.influence import Stage
from msif.core.layers import tracked
from msif.scale import fitting, index, lowrank, streaming

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def study():
    return indexed(DAMPING, per_head=False)


def test_what_has_no_meaning_is_refused_before_any_pass(tmp_path, study, monkeypatch):
    monkeypatch.setattr(streaming.influence, "passes", lambda *_: 1 / 0)
    run, name = (study.tracked, study.candidates), study.tracked.names[0]
    turned = {k: x.mT for k, x in study.w.items()}
    infinite = {**study.w, name: study.w[name] * torch.inf}
    for w, error, says in [
        ({}, ValueError, "do not have the same layers"),
        (turned, ValueError, f"the query vectors of {name} have the shape"),
        (infinite, FloatingPointError, f"query vectors of {name} are NaN or infinite"),
    ]:
        for call in (
            lambda w: influence.score(*run, w),
            lambda w: influence.token_scores(*run, w),
            lambda w: streaming.score_corpus(*run, w, tmp_path / "x"),
        ):
            with pytest.raises(error, match=says):
                call(w)
    for options, says in [
        ({"top": 0}, "top is 0"),
        ({"top": 2.5}, "top is 2.5"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"block": 0}, "block is 0"),
    ]:
        with pytest.raises(ValueError, match=says):
            streaming.score_corpus(*run, study.w, tmp_path / "x", **options)
    for call in (
        lambda x: influence.score(study.tracked, x, study.w),
        lambda x: influence.query_gradients(study.tracked, x),
        lambda x: influence.self_influence(study.tracked, x, Stage(study.factors, DAMPING)),
        lambda x: queries.preconditioned(study.tracked, x, [Stage(study.factors, DAMPING)]),
        lambda x: ekfac.fit(study.tracked, x),
        lambda x: fitting.fit(tmp_path / "y", study.tracked, x),
    ):
        with pytest.raises(ValueError, match="generator.*expected a list"):
            call(x for x in study.candidates)
    with pytest.raises(ValueError, match="damping is 0.1: expected a Damping"):
        index.choose(study.factors, 0.1, 8)
    with pytest.raises(ValueError, match="keep is 'lots': expected a size"):
        fitting.fit(tmp_path / "y", study.tracked, DATA, keep="lots")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):  # a batch is no larger than its block: it has room
        streaming.score_corpus(*run, study.w, tmp_path / "x", batch_size=10**9)


def test_a_stage_that_is_not_there_is_refused(study):
    stages = [Stage(study.factors, DAMPING), Stage(study.factors, DAMPING, DAMPING)]
    for stage in (-1, 2, 0.5):
        with pytest.raises(ValueError, match="stage is"):
            queries.preconditioned(study.tracked, DATA[:2], stages, stage=stage)


def test_no_tracked_layers_are_refused(tmp_path):
    none = tracked(neox()).only([])
    for call in (
        lambda: ekfac.fit(none, DATA),
        lambda: fitting.fit(tmp_path / "f", none, DATA),
        lambda: influence.query_gradients(none, DATA),
    ):
        with pytest.raises(ValueError, match="the number of tracked layers is 0"):
            call()
    with pytest.raises(ValueError, match="there are no query vectors"):
        influence.score(none, DATA, {})


def test_sequences_that_share_an_index_are_refused_everywhere(tmp_path, study):
    twice = [*DATA[:3], DATA[0]]
    chosen = index.choose(study.factors, DAMPING, 8)
    low = lowrank.compress(study.w, study.factors, 0.1)
    for call in (
        lambda: influence.score(study.tracked, twice, study.w),
        lambda: lowrank.score(study.tracked, twice, low),
        lambda: chosen.documents(study.tracked, twice),
        lambda: ekfac.fit(study.tracked, twice),
        lambda: fitting.fit(tmp_path / "f", study.tracked, twice),
    ):
        with pytest.raises(ValueError, match="share their index"):
            call()
    with pytest.raises(ValueError, match="the indices of a stream must rise"):
        streaming.score_corpus(study.tracked, twice, study.w, tmp_path / "s")
