"""The front door gives the engine's numbers, in memory and in a folder, and refuses wrong turns."""

import doctest
import inspect
import subprocess
import sys
import warnings

import pandas
import pytest
import torch
from support.own_pair import ASK, stages_of

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


def test_ties_are_in_the_order_of_their_index(pair, given, stages):
    twice = [*given[0], data.Sequence(99, given[0][0].input_ids, given[0][0].labels)]
    for docs in (twice, twice[::-1]):
        [row, _] = msif.trace(stages, ASK, docs).top(len(docs))
        order = [x.document for x in row]
        assert order.index(0) + 1 == order.index(99)


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
