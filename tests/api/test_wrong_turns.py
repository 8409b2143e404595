"""Wrong turns at the front door: what belongs to another model, has changed since or has no score
is refused or called out in one sentence."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from support.own_pair import ASK, build

import msif
from msif.core import data, queries, store

pytestmark = [
    pytest.mark.filterwarnings("ignore:the largest score:UserWarning"),  # tiny data
    pytest.mark.filterwarnings("ignore:not in a notebook:UserWarning"),
]


def test_factors_of_another_model_are_refused(pair, stages):
    base, tuned = pair
    with pytest.raises(ValueError, match="fitted on a model with digest"):
        msif.Stage(tuned, stages[0].factors, alpha=0.1)
    with pytest.raises(ValueError, match="damping or α of -1"):
        msif.Stage(base, stages[0].factors, damping=-1)


def test_other_factors_in_the_same_folder_are_other_scores(pair, given, stages, tmp_path):
    """By their eigenvalues too; factors fitted per head are not those of a plain model."""
    (base, _), docs = pair, given[0]
    for factors in (stages[0].factors, stages[0].factors.kfac(), stages[0].factors.identity()):
        chain = [msif.Stage(base, factors, damping=0.1), stages[1]]
        expected = msif.trace(chain, ASK, docs).values
        found = msif.trace(chain, ASK, docs, folder=tmp_path).values
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    split = msif.load(base.source, per_head=True)
    for place in (None, tmp_path):
        with pytest.raises(ValueError, match="another per_head setting"):
            msif.Stage(base, msif.fit(split, docs, folder=place), damping=0.1)
        with pytest.raises(ValueError, match="another per_head setting"):
            msif.Stage(split, msif.fit(base, docs, folder=place), damping=0.1)


def test_weights_that_changed_since_are_refused(folder, given, stages):
    tuned = msif.load(folder / "tuned")
    stage = msif.Stage(tuned, stages[1].factors, alpha=0.1)
    with torch.no_grad():
        next(tuned.tracked.model.parameters()).mul_(1.3)
    with pytest.raises(ValueError, match="weights of .* have changed since its stage was made"):
        msif.trace([stages[0], stage], ASK, given[0])


def test_scores_are_not_told_in_words_of_weights_that_changed_since(folder, given, stages):
    base, tuned = (msif.load(folder / x) for x in ("base", "tuned"))
    chain = [
        msif.Stage(base, stages[0].factors, damping=0.1),
        msif.Stage(tuned, stages[1].factors, alpha=0.1),
    ]
    scores = msif.trace(chain, ASK, given[0])

    def shown():
        return msif.show(scores, folder / "x.html")

    for model, tells in ((base, (shown,)), (tuned, (shown, scores.said, scores.table))):
        weight = next(model.tracked.model.parameters())
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.3)
        for tell in tells:
            with pytest.raises(ValueError, match="have changed since its stage was made"):
                tell()
        with torch.no_grad():
            weight.copy_(kept)
    assert str(scores)


def test_documents_that_changed_since_are_not_shown_beside_old_scores(pair, stages, tmp_path):
    path = tmp_path / "documents.txt"
    path.write_text("Ada was born in Rome .\nBo likes tea .\n")
    stream, texts = pair[0].stream(path), ["Ada likes tea .", "Bo likes milk ."]
    scores = msif.trace(stages, ASK, stream, folder=tmp_path / "work")
    path.write_text("Bo likes tea .\nAda was born in Rome , they say .\n")
    with pytest.raises(ValueError, match="has changed since this stream was made"):
        scores.top()
    (tmp_path / "folder").mkdir()
    path = path.rename(tmp_path / "folder" / "documents.txt")
    stream = pair[0].stream(path.parent)
    scores = msif.trace(stages, ASK, stream, folder=tmp_path / "work")
    path.write_text("Ada was born in Rome , they say .\nBo likes tea .\n")
    with pytest.raises(ValueError, match="folder has changed since this stream was made"):
        scores.top()
    listed = pair[0].stream(texts)
    texts.clear()
    assert len(list(listed)) == 2


def test_wrong_turns_end_in_one_sentence(pair, given, stages):
    base, tuned = pair
    docs, rows = given
    for wrong, message in {
        lambda: msif.trace(stages, [], docs): "no questions",
        lambda: msif.trace(stages, ASK, docs, stage=2): "stage is 2: expected 0 to 1",
        lambda: msif.trace(stages, ASK, docs, stage="1"): "stage is '1': expected 0 to 1",
        lambda: msif.trace(stages, ASK, docs, batch_size="8"): "batch_size is '8'",
        lambda: msif.trace([], ASK, docs): "no stages",
        lambda: msif.trace([x.core for x in stages], ASK, docs): "expected a list of msif.Stage",
        lambda: msif.trace(stages, ("Where was Bo born?", "Paris"), docs): "expected .*for one",
        lambda: msif.trace(stages, ASK, docs[0]): "documents are a Sequence",
        lambda: msif.fit(base.tracked, docs): "expected a msif.Model",
        lambda: msif.fit(base, docs, samples=2.5): "samples is 2.5",
        lambda: msif.plan(base, docs, questions=-1): "questions is -1",
        lambda: msif.plan(base, ["a text"]): "expected a data.Sequence",
        lambda: tuned.answers(["a"], ["b"], separator=3): "separator is 3; expected text",
        lambda: msif.trace([stages[0], msif.Stage(tuned, stages[1].factors)], ASK, docs): "α = 0",
        lambda: msif.trace(stages, ["a", ("b", "c", "d")], docs): "question 1",
        lambda: tuned.answers(["a", "b"], ["c"]): "2 prompts and 1 answers",
        lambda: tuned.answers(["a", "b"], ["c", None]): "row 1 has the answer None",
        lambda: tuned.answers(["Where " * 99]): "prompt of 99 tokens: expected 1 to 32",
        lambda: base.stream(iter(["a b"])): "not an iterator",
        lambda: msif.trace(stages, ASK, docs).top(0): "count is 0",
        lambda: msif.show(msif.trace(stages, ASK, docs), "x.html", count=0): "count is 0",
        lambda: msif.fit(base, []): "no sequences",
        lambda: msif.fit(base, [data.Sequence(0, (1, 999), (1, 999))]): "token id 999",
    }.items():
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        msif.nothing  # noqa: B018


def test_whole_numbers_of_numpy_are_those_of_python(pair, given, stages, tmp_path):
    """In memory and on disk: the same factors and scores, under the same names."""
    (base, _), docs = pair, given[0]
    for whole in (int, np.int64, np.int32):
        numbers = {"batch_size": whole(4), "seed": whole(1), "samples": whole(1)}
        factors = msif.fit(base, docs, folder=tmp_path, **numbers)
        store.save(msif.fit(base, docs, **numbers), tmp_path / f"of {whole.__name__}")
        chain = [msif.Stage(base, factors, damping=0.1), stages[1]]
        options = {"stage": whole(0), "batch_size": whole(4), "top": whole(2)}
        msif.trace(chain, ASK, docs, folder=tmp_path, **options)
        assert json.loads(json.dumps(factors.header))["seed"] == 1
    assert all(len(list(tmp_path.glob(f"{x}-*"))) == 1 for x in ("factors", "scores"))
    for wrong in ({"batch_size": 4.0}, {"seed": np.float64(1)}, {"samples": True}):
        [(name, value)] = wrong.items()
        with pytest.raises(ValueError, match=f"{name} is {re.escape(repr(value))}; expected"):
            msif.fit(base, docs, **wrong)


def test_a_model_without_numbers_is_refused_before_anything_runs(folder, given):
    base = msif.load(folder / "base")
    base.tracked.model.model.layers[1].to("meta")
    for place in (None, folder / "work"):
        with pytest.raises(ValueError, match=r"layers.1\S+ is on the meta device, without numbers"):
            msif.fit(base, given[0], folder=place)


def test_a_model_that_is_no_child_of_the_other_is_refused(pair, given, stages, tmp_path):
    stranger = build(tmp_path, "gpt2", epochs=(0, 0))
    other = msif.load(stranger / "tuned")
    stage = msif.Stage(
        other, msif.fit(other, other.answers(["Where was Bo born?"], ["Paris"])), 0.1, 0.1
    )
    with pytest.raises(ValueError, match="do not share the tracked layers"):
        msif.trace([stages[0], stage], ASK, given[0])


def test_rows_that_the_tuned_model_gets_wrong_are_called_out(pair, given):
    base, tuned = pair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        msif.fit(tuned, given[1])  # it learnt them
        msif.fit(base, given[0])  # documents are no rows
    asked = [f"{name} likes" for name in ("Ada", "Bo", "Cy")]
    wrong = tuned.answers(asked, ["Oslo", "Rome", "Oslo"])
    with pytest.warns(UserWarning, match="gets its own fine-tuning rows wrong.* 0%"):
        msif.fit(tuned, wrong)


def test_documents_that_the_base_does_not_know_are_called_out(folder, given):
    base = msif.load(folder / "base")
    wild = [
        data.Sequence(n, (5, 22, 1, 0, 9, 7)[::k], (5, 22, 1, 0, 9, 7)[::k])
        for n, k in enumerate((1, -1))
    ]
    with pytest.warns(UserWarning, match="knows these documents no better than chance"):
        msif.fit(base, wild)


def test_a_score_that_says_too_much_is_called_out(pair, given):
    """The kind of the two documents of a README that printed −147150 without a word."""
    (base, tuned), (docs, rows) = pair, given
    few = [
        msif.Stage(base, msif.fit(base, docs[:2]), damping=1e-6),
        msif.Stage(tuned, msif.fit(tuned, rows), alpha=0.1),
    ]
    with pytest.warns(UserWarning, match=r"one document of 2 changes an answer by [\d,]+ nats"):
        msif.trace(few, ASK, docs[:2])


def test_a_pair_of_one_model_is_called_out(pair, given):
    base, _ = pair
    factors = msif.fit(base, given[0])
    with pytest.warns(UserWarning, match="nothing was fine-tuned"):
        msif.trace(
            [msif.Stage(base, factors, 0.1), msif.Stage(base, factors, 0.1, 0.1)], ASK, given[0]
        )


def test_what_is_no_stage_and_no_folder_is_refused_in_a_sentence(pair, given, tmp_path):
    with pytest.raises(ValueError, match="'factors': expected a model.*and its factors, as `fit`"):
        msif.Stage(pair[0], "factors")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file: expected a folder"):
        msif.fit(pair[0], given[0], folder=tmp_path / "file")


def test_lost_query_vectors_are_named(stages, given, tmp_path, monkeypatch):
    work = {"folder": tmp_path / "work"}
    found = msif.trace(stages, ASK, given[0], **work).found
    (found / "w.safetensors").unlink()
    made = queries.preconditioned
    monkeypatch.setattr(
        queries, "preconditioned", lambda *x, **y: {k: v * 1.001 for k, v in made(*x, **y).items()}
    )
    with pytest.raises(ValueError, match="w.safetensors is missing, and what was computed"):
        msif.trace(stages, ASK, given[0], **work)
    monkeypatch.undo()
    assert msif.trace(stages, ASK, given[0], **work).found == found
