"""The front door gives the engine's numbers, in memory and in a folder, and refuses wrong turns."""

import doctest
import inspect
import subprocess
import sys
import warnings

import pandas
import pytest
import torch
from support.own_pair import build

import msif
from msif import api
from msif.core import data, ekfac, influence, queries, store
from msif.core.influence import Damping
from msif.core.layers import tracked
from msif.core.model_digest import model_digest
from msif.core.models import load_model, load_tokenizer
from msif.scale import fitting, streaming

pytestmark = [
    pytest.mark.filterwarnings("ignore:the largest score:UserWarning"),  # tiny data
    pytest.mark.filterwarnings("ignore:not in a notebook:UserWarning"),
]
ASK = [("Where was Gus born?", "Rome"), ("Where was Hal born?", "Oslo")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair(folder):
    return msif.load(folder / "base"), msif.load(folder / "tuned")


@pytest.fixture(scope="module")
def given(folder, pair):
    """(documents, rows)"""
    base, tuned = pair
    return base.documents(folder / "documents.jsonl"), tuned.answers(folder / "rows.jsonl")


def stages_of(pair, given, **options):
    (base, tuned), (docs, rows) = pair, given
    return [
        msif.Stage(base, msif.fit(base, docs, **options), damping=0.1),
        msif.Stage(tuned, msif.fit(tuned, rows, **options), alpha=0.1),
    ]


@pytest.fixture(scope="module")
def stages(pair, given):
    return stages_of(pair, given)


def by_core(folder):
    """(tracked base, its documents, w) by the explicit functions alone."""
    base, tuned = (tracked(load_model(folder / name)) for name in ("base", "tuned"))
    tokenizer = load_tokenizer(folder / "base")
    docs = data.encode_documents(data.load_texts(folder / "documents.jsonl"), tokenizer, 64)
    rows = data.load_rows(folder / "rows.jsonl", ["prompt", "answer"])
    columns = [[row[name] for row in rows] for name in ("prompt", "answer")]
    answered = data.encode_answers(*columns, tokenizer, 64)
    asked = data.encode_answers(*zip(*ASK), tokenizer, 64)
    return base, tuned, docs, answered, asked


def test_scores_in_memory_are_the_engines_to_the_last_bit(folder, pair, given, stages):
    base, tuned, docs, answered, asked = by_core(folder)
    chain = [
        influence.Stage(ekfac.fit(base, docs), damping=Damping(0.1)),
        influence.Stage(ekfac.fit(tuned, answered), alpha=Damping(0.1)),
    ]
    for k, (model, scored) in enumerate([(base, docs), (tuned, answered)]):
        w = queries.preconditioned(tuned, asked, chain, stage=k)
        expected = influence.score(model, scored, w)
        found = msif.trace(stages, ASK, given[k], stage=k)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.normalised(), expected.normalised())
        assert torch.equal(found.norms, expected.norms)


def test_scores_in_a_folder_are_the_engines_to_the_last_bit(folder, pair, given, tmp_path):
    base, tuned, docs, answered, asked = by_core(folder)
    chain = [
        influence.Stage(fitting.fit(tmp_path / "base", base, docs), damping=Damping(0.1)),
        influence.Stage(fitting.fit(tmp_path / "tuned", tuned, answered), alpha=Damping(0.1)),
    ]
    w = queries.preconditioned(tuned, asked, chain)
    streaming.score_corpus(base, docs, w, tmp_path / "scores")
    [(index, expected)] = streaming.read_scores(tmp_path / "scores")
    work = {"folder": tmp_path / "work"}
    stages = stages_of(pair, given, **work)
    stream = pair[0].stream(folder / "documents.jsonl")
    for scored in (given[0], stream):
        found = msif.trace(stages, ASK, scored, **work)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.norms, expected.norms)
        assert torch.equal(found.index, index)
        assert found.top(3) == msif.trace(stages, ASK, scored, **work).top(3)
    assert len(list((tmp_path / "work").glob("factors-*"))) == 2
    assert len(list((tmp_path / "work").glob("scores-*"))) == 2  # a list and a stream


def test_one_folder_holds_what_differs_apart(folder, pair, given, tmp_path):
    base, _ = pair
    docs = given[0]
    work = {"folder": tmp_path}
    first = msif.fit(base, docs, **work)
    others = [msif.fit(base, docs, seed=1, **work), msif.fit(base, docs[1:], **work)]
    assert len(list(tmp_path.glob("factors-*"))) == 3
    a, b = (next(iter(x.factors.values())).eigenvalues for x in (first, others[0]))
    assert not torch.equal(a, b)
    with pytest.raises(store.FactorsError, match="expected one folder of factors.*there are 3"):
        msif.load_factors(tmp_path, base)
    one = sorted(tmp_path.glob("factors-*"))[0]
    assert msif.load_factors(one, base).header["model"] == model_digest(base.tracked.model)


def test_what_stands_first_is_told_by_rank_and_kept_as_a_table(given, stages, tmp_path):
    scores = msif.trace(stages, ASK, given[0], top=3)
    for normalised, values in ((True, scores.normalised()), (False, scores.values)):
        order = values.sort(dim=1, descending=True, stable=True).indices
        highest = scores.top(normalised=normalised)
        assert [[x.document for x in row] for row in highest] == order[:, :3].tolist()
        lowest = scores.top(2, normalised=normalised, lowest=True)
        assert [[x.document for x in row] for row in lowest] == order.flip(1)[:, :2].tolist()
        assert [x.rank for x in highest[0]] == [1, 2, 3] and [x.rank for x in lowest[0]] == [-1, -2]
        for k, row in enumerate(highest):
            for x in row:
                assert x.score == scores.values[k, x.document].item()
                assert x.normalised == scores.normalised()[k, x.document].item()
                assert x.text == stages[0].model.text(given[0][x.document])
    scores.write_parquet(tmp_path / "top.parquet")
    table = pandas.read_parquet(tmp_path / "top.parquet")
    assert table["document"].tolist() == [x.document for row in scores.top() for x in row]
    assert table["answer"].tolist() == ["Rome"] * 3 + ["Oslo"] * 3
    assert "Where was Gus born? → Rome   (log p = " in str(scores)
    assert str(scores).count("\n") == 13 and len(repr(scores)) < 100 and "\n" not in repr(stages)
    for said, question in zip(scores.said(), scores.questions):
        assert said.log_probability == pytest.approx(f_of(stages[1].model, question), abs=1e-5)


def f_of(model, question):
    """log p of the answer of a question, position by position."""
    ids, labels = (torch.tensor(x) for x in (question.input_ids, question.labels))
    log_p = model.tracked.model(ids[None]).logits[0].log_softmax(1)
    at = [t for t in range(1, len(ids)) if labels[t] != -100]
    return sum(log_p[t - 1, ids[t]].item() for t in at)


def test_a_subset_keeps_its_documents_numbers(given, stages, tmp_path):
    few = given[0][5:12]
    in_memory = msif.trace(stages, ASK, few)
    on_disk = msif.trace(stages, ASK, few, folder=tmp_path)
    for scores in (in_memory, on_disk):
        assert scores.index.tolist() == list(range(5, 12))
        for row in scores.top(2):
            assert all(x.text == stages[0].model.text(given[0][x.document]) for x in row)
    torch.testing.assert_close(on_disk.values, in_memory.values)  # other batches, same sums


def test_the_page_has_the_ranks_of_the_whole_corpus(given, stages, tmp_path):
    """Only documents that stand first or last are given to the page; ranks stay those of all."""
    scores = msif.trace(stages, ASK, given[0], folder=tmp_path, top=4)
    beside = {"by length": torch.arange(24.0).expand(2, 24)}
    path = msif.show(scores, tmp_path / "page.html", opponents=2, beside=beside)
    html = path.read_text("utf-8")
    shown = api.showing.explored(scores, 4, 2, beside, {})
    from msif.view import explorer

    prepared = explorer.prepared(**shown)
    for k, query in enumerate(prepared["queries"]):
        for name, values in (
            ("influence, normalised", scores.normalised()),
            ("influence", scores.values),
            ("by length", beside["by length"]),
        ):
            order = values[k].sort(descending=True, stable=True).indices.tolist()
            entries = {x.rank: x.document for x in query.rankings[name]}
            assert [entries[rank] for rank in (1, 2, 3, 4)] == order[:4], name
            if name != "by length":  # all its scores are positive: it has no opponents
                assert [entries[rank] for rank in (-1, -2)] == order[::-1][:2], name
    assert html.startswith("<!doctype html>") and "Gus" in html


# ---------------------------------------------------------------------- the model's own answers


def test_where_no_answer_is_given_the_models_own_is_traced(pair, given, stages):
    """It is the greedy continuation, and traced exactly as if it had been given."""
    _, tuned = pair
    [own] = tuned.answers(["Where was Hal born?"], new_tokens=1)
    said = tuned.text(own).split()[-1]
    [same] = tuned.answers(["Where was Hal born?"], [said])
    assert own == same
    logits = tuned.tracked.model(torch.tensor([own.input_ids[:-1]])).logits
    assert logits[0, -1].argmax().item() == own.input_ids[-1]
    traced = msif.trace(stages, tuned.answers(["Where was Hal born?"], new_tokens=1), given[0])
    told = msif.trace(stages, [("Where was Hal born?", said)], given[0])
    assert torch.equal(traced.values, told.values)
    both = tuned.questions([("Where was Hal born?", None), ("Where was Bo born?", "Rome")])
    assert [x.index for x in both] == [0, 1] and len(both[0].input_ids) > len(both[1].input_ids)


def test_an_answer_ends_where_the_model_ends_it(pair, monkeypatch):
    _, tuned = pair
    [long] = tuned.answers(["Where was Hal born?"], new_tokens=4)
    answer = long.input_ids[-4:]
    last = next(n for n in range(1, 4) if answer[n] not in answer[:n])
    monkeypatch.setattr(tuned.tracked.model.generation_config, "eos_token_id", answer[last])
    [short] = tuned.answers(["Where was Hal born?"], new_tokens=4)
    assert short.input_ids == long.input_ids[: len(long.input_ids) - 4 + last]
    monkeypatch.setattr(tuned.tracked.model.generation_config, "eos_token_id", [answer[0]])
    with pytest.raises(ValueError, match="row 0: to 'Where was Hal born.' the model answers noth"):
        tuned.answers(["Where was Hal born?"])


# ---------------------------------------------------------------------------------- wrong turns


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


def test_what_the_model_says_is_its_likeliest_words_whatever_its_files_ask_for(folder, pair):
    """Neither penalties of generation_config.json nor a mode of training take part."""
    _, tuned = pair
    plain = tuned.questions(["Where was Hal born?"], new_tokens=6)
    other = msif.load(folder / "tuned")
    config = other.tracked.model.generation_config
    config.repetition_penalty, config.no_repeat_ngram_size = 5.0, 1
    config.suppress_tokens = [plain[0].input_ids[-1]]
    other.tracked.model.train()
    assert other.questions(["Where was Hal born?"], new_tokens=6) == plain
    assert other.tracked.model.training and config is other.tracked.model.generation_config


def test_documents_that_changed_since_are_not_shown_beside_old_scores(pair, stages, tmp_path):
    path = tmp_path / "documents.txt"
    path.write_text("Ada was born in Rome .\nBo likes tea .\n")
    stream, texts = pair[0].stream(path), ["Ada likes tea .", "Bo likes milk ."]
    scores = msif.trace(stages, ASK, stream, folder=tmp_path / "work")
    path.write_text("Bo likes tea .\nAda was born in Rome , they say .\n")
    with pytest.raises(ValueError, match="has changed since this stream was made"):
        scores.top()
    listed = pair[0].stream(texts)
    texts.clear()
    assert len(list(listed)) == 2


def test_ties_are_in_the_order_of_their_index(pair, given, stages):
    twice = [*given[0], data.Sequence(99, given[0][0].input_ids, given[0][0].labels)]
    for docs in (twice, twice[::-1]):
        [row, _] = msif.trace(stages, ASK, docs).top(len(docs))
        order = [x.document for x in row]
        assert order.index(0) + 1 == order.index(99)


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


def test_questions_of_several_calls_go_together(pair, given, stages):
    _, tuned = pair
    docs, _ = given
    asked = [
        tuned.answers([f"Where was {who} born?"], [place])
        for who, place in (("Bo", "Paris"), ("Ada", "London"))
    ]
    both = msif.trace(stages, asked[0] + asked[1], docs).values
    alone = torch.cat([msif.trace(stages, x, docs).values for x in asked])
    torch.testing.assert_close(both, alone)


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


# ------------------------------------------------------------------------------- names and texts


def test_the_ten_names_are_loaded_when_they_are_asked_for():
    code = (
        "import sys, msif; early = [x for x in ('torch', 'msif.api') if x in sys.modules]; "
        "missing = [x for x in msif.__all__ if not getattr(msif, x)]; "
        "import msif.view.explorer; print(early, missing, len(msif.__all__), callable(msif.show))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] [] 10 True"


@pytest.mark.parametrize("name", msif.__all__)
def test_every_public_name_has_an_example_that_runs(
    name, folder, pair, given, stages, tmp_path, monkeypatch
):
    """Beside folders my/base and my/fine-tuned, and with what the README's example has made."""
    thing = getattr(msif, name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "base").symlink_to(folder / "base")
    (tmp_path / "my" / "fine-tuned").symlink_to(folder / "tuned")
    pandas.DataFrame(
        {"text": ["Ada was born in London .", "Bo came .", "Cy likes tea ."]}
    ).to_parquet(tmp_path / "my" / "corpus.parquet")
    base, tuned = pair
    docs = base.documents(["Ada was born in London .", "Bo was born in Paris ."])
    rows = tuned.answers(["Where was Bo born?"], ["Paris"])
    made = {"factors": msif.fit(base, docs, folder="work"), "stages": stages_of(pair, (docs, rows))}
    made["scores"] = msif.trace(made["stages"], ASK, docs)
    names = {"msif": msif, "base": base, "tuned": tuned, "docs": docs, "rows": rows, **made}
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    examples = [x for x in finder.find(thing, name, globs=names) if x.examples]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for example in examples:
            assert runner.run(example).failed == 0, example.name
    assert examples and inspect.getdoc(thing)


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
