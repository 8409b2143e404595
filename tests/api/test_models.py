"""What the front door reads is what the model was trained on, and it refuses what is no text."""

import json

import pytest
import torch
from support.tiny import llama
from support.tokenizers_of_kinds import CHAT, MARKED, byte_level, like_llama
from transformers import LlamaConfig, LlamaForCausalLM

from msif.api.models import Model
from msif.core.data import NO_LOSS, encode_documents, word_tokenizer
from msif.core.layers import tracked

TEXTS = ["user assistant Where was Ada born? Paris London", "Bo was born in Oslo ."]


def small(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Model(tracked(LlamaForCausalLM(config).eval()), tokenizer, "small")


@pytest.fixture(scope="module")
def chat():
    return small(byte_level(TEXTS, CHAT))


@pytest.fixture(scope="module")
def with_bos():
    return small(like_llama(TEXTS))


@pytest.fixture(scope="module")
def plain():
    return Model(tracked(llama()), word_tokenizer(["a b c d e"]), "tiny")


def prompt_of(model, question):
    return model.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )


def test_rows_documents_and_own_answers_begin_with_the_same_bos(with_bos):
    (row,) = with_bos.answers(["Where was"], ["Paris"])
    (own,) = with_bos.questions(["Where was"], new_tokens=3)
    (document,) = with_bos.documents(["Where was Paris"])
    assert row.input_ids == document.input_ids
    head = [x for x, label in zip(row.input_ids, row.labels) if label == NO_LOSS]
    assert list(own.input_ids[: len(head)]) == head and head[0] == 1
    ids = torch.tensor([head])
    for token in own.input_ids[len(head) :]:  # what the model says to these very ids
        assert with_bos.tracked.model(ids).logits[0, -1].argmax() == token
        ids = torch.cat([ids, torch.tensor([[token]])], 1)


@pytest.mark.parametrize("closing", [None, "", "\n\n"])
def test_an_own_answer_that_the_model_ended_is_the_row_of_that_answer(chat, monkeypatch, closing):
    prompt = prompt_of(chat, "Where was Ada born?")
    said = chat.tokenizer("Paris")["input_ids"]
    monkeypatch.setattr("msif.api.own.greedy", lambda model, prompts, *rest, **more: [said])
    (own,) = chat.questions([prompt], new_tokens=len(said) + 1, closing=closing)
    (told,) = chat.questions([(prompt, "Paris")], closing=closing)
    assert own == told
    (cut,) = chat.questions([prompt], new_tokens=len(said))  # it could have gone on
    assert list(cut.input_ids[-len(said) :]) == said


def test_a_row_of_a_chat_is_shown_as_it_is_trained_on(chat):
    (row,) = chat.answers([prompt_of(chat, "Where was Ada born?")], ["Paris"])
    lines = chat.tokens(row).split("\n")
    assert [x.split()[-1] for x in lines[-2:]] == ["'<|im_end|>'", "'\\n'"]
    assert sum(not x.endswith("–") for x in lines[1:]) == sum(y != NO_LOSS for y in row.labels)


def test_a_documents_number_is_its_row_listed_or_streamed(plain, tmp_path):
    texts = ["a b", "", "  ", "c d", "e a"]
    path = tmp_path / "c[1].jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for source in (texts, path):
        for documents in (plain.documents(source), list(plain.stream(source))):
            assert [x.index for x in documents] == [0, 3, 4]
            assert [plain.text(x) for x in documents] == ["a b", "c d", "e a"]
        assert [x.index for x in plain.documents(source, limit=4)] == [0, 3]
        assert [x.index for x in plain.stream(source, limit=4)] == [0, 3]
    assert plain.documents(texts) == encode_documents(texts, plain.tokenizer, 8)


def test_rows_keep_their_numbers_beside_the_models_own(plain):
    found = plain.questions([("a b", None), ("a", "b"), ("c d", None), ("e", "c d")], new_tokens=2)
    assert [x.index for x in found] == [0, 1, 2, 3]
    assert found[3].input_ids == plain.answers(["e"], ["c d"])[0].input_ids
    rows = [{"prompt": "a b"}, {"prompt": "a", "answer": "b"}]
    rows += [{"prompt": "c d", "answer": None}, {"prompt": "e", "completion": "c d"}]
    assert plain.questions(rows, new_tokens=2) == found
    assert plain.answers(rows[1:2] + rows[3:]) == plain.answers(["a", "e"], ["b", "c d"])


WRONG = {
    lambda m: m.documents(["a b"], max_length=0): "max_length is 0; expected a whole number",
    lambda m: m.documents(["a b"], max_length="8"): "max_length is '8'",
    lambda m: m.stream(["a b"], max_length=-1): "max_length is -1",
    lambda m: m.answers(["a"], ["b"], max_length=2.5): "max_length is 2.5",
    lambda m: m.documents(["a b", "b c"], limit=-1): "limit is -1",
    lambda m: m.stream(["a b"], limit=0): "limit is 0",
    lambda m: m.answers(["a"], ["b"], limit="1"): "limit is '1'",
    lambda m: m.questions(["a"], new_tokens=0): "new_tokens is 0",
    lambda m: m.documents(["a b", None]): "document 1 is None",
    lambda m: m.documents({"a b": 1}): "of type dict",
    lambda m: m.stream(5): "5 is of type int",
    lambda m: list(m.stream(["a b", None])): "document 1 is None",
    lambda m: m.answers("a", "b"): "prompts are 'a', one text or a path, and answers are given",
    lambda m: m.answers(["a", "b"], "bc"): "'bc' is of type str",
    lambda m: m.answers([None], ["b"]): "prompt 0 is None",
    lambda m: m.answers(["a"], ["zebra"]): "row 0 has the answer 'zebra', of which",
    lambda m: m.questions([("a", "b"), ("c", "zebra")]): "row 1 has the answer 'zebra', of which",
    lambda m: m.questions([{"text": "a"}]): "question 0 is .*expected a prompt or",
    lambda m: m.answers([{"prompt": "a"}]): "row 0 has no column 'answer' or 'completion'",
    lambda m: m.answers([{"prompt": "a", "answer": "b"}], ["b"]): "answers are given beside rows",
    lambda m: m.questions([("a", None), ("a", 3)]): "answer 1 is 3",
    lambda m: m.questions({"a": "b"}): "of type dict",
}


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_means_nothing_is_refused_in_one_sentence(plain, number):
    call, message = list(WRONG.items())[number]
    with pytest.raises(ValueError, match=message):
        call(plain)


def test_a_text_in_place_of_a_path_is_not_looked_for_on_the_hub(plain):
    with pytest.raises(FileNotFoundError, match="Ada was born does not exist; expected a file"):
        plain.documents("Ada was born")


TWO = [
    {"role": "user", "content": "Where was Ada born?"},
    {"role": "assistant", "content": "London"},
    {"role": "user", "content": "Where was Bo born ?"},
]


def test_conversations_are_rows_and_questions(tmp_path, monkeypatch):
    """Of a question the last turn is the answer, the model's own if missing; files as lists."""
    chat = small(byte_level(TEXTS, CHAT))
    whole = [*TWO, {"role": "assistant", "content": "Oslo"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": whole}) + "\n")
    [row], [told] = chat.answers([whole]), chat.questions([{"messages": whole}])
    assert chat.answers(tmp_path / "rows.jsonl") == [row] == chat.answers([{"messages": whole}])
    assert chat.questions(tmp_path / "rows.jsonl") == [told] == chat.questions([whole, whole])[:1]
    decoded = chat.tokenizer.decode([x for x in told.labels if x != NO_LOSS])
    assert decoded == "Oslo<|im_end|>\n" and told.input_ids == row.input_ids
    assert sum(x != NO_LOSS for x in row.labels) > sum(x != NO_LOSS for x in told.labels)
    said = chat.tokenizer("Oslo")["input_ids"]
    monkeypatch.setattr("msif.api.own.greedy", lambda model, prompts, *rest, **more: [said])
    assert chat.questions([TWO], new_tokens=len(said) + 1) == [told]
    [cut] = chat.questions([TWO], new_tokens=len(said))
    assert cut.input_ids == told.input_ids[: len(cut.input_ids)] and cut.labels[-1] == said[-1]


def test_after_a_prompt_of_messages_all_of_the_model_s_own_answer_has_the_loss(monkeypatch):
    """As all of a given one has, where the template's marks end before what closes it, too."""
    bare = MARKED.replace("<|im_end|>{% endgen", "{% endgen").replace("{{ '\\n' }}", "<|im_end|>\n")
    chat = small(byte_level(TEXTS, bare))
    told = {"prompt": TWO, "completion": [{"role": "assistant", "content": "Oslo"}]}
    said = chat.tokenizer("Oslo")["input_ids"]
    monkeypatch.setattr("msif.api.own.greedy", lambda model, prompts, *rest, **more: [said])
    for row in (told, [*TWO, *told["completion"]]):
        due = {"prompt": TWO} if row is told else TWO
        [given], [own] = chat.questions([row]), chat.questions([due], new_tokens=len(said) + 1)
        assert given == own
        decoded = chat.tokenizer.decode([x for x in own.labels if x != NO_LOSS])
        assert decoded == ("Oslo<|im_end|>\n" if row is told else "Oslo")


def test_preferences_arrive_as_text_or_as_conversations(tmp_path):
    chat = small(byte_level(TEXTS, CHAT))
    sides = {"chosen": "London", "rejected": "Oslo"}
    messages = {x: [{"role": "assistant", "content": y}] for x, y in sides.items()}
    prompt = chat.tokenizer.apply_chat_template(TWO, tokenize=False, add_generation_prompt=True)
    expected = chat.preferences([prompt], ["London"], ["Oslo"])
    whole = {x: [*TWO, *y] for x, y in messages.items()}
    for row in ({"prompt": prompt, **sides}, {"prompt": TWO, **messages}, whole):
        (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
        for given in ([row], tmp_path / "pairs.jsonl"):
            assert chat.preferences(given) == expected
    asked = [prompt] * 3, ["London", "Oslo", "Ada"], ["Oslo", "London", "Bo"]
    rows = [dict(zip(("prompt", "chosen", "rejected"), x)) for x in zip(*asked)]
    for given in (asked, [rows]):  # the first ones, however they arrive
        assert chat.preferences(*given, limit=2) == chat.preferences(*given)[:2]
    chosen, rejected = (chat.tokens(x) for x in (expected[0].chosen, expected[0].rejected))
    assert chat.tokens(expected[0]) == f"chosen:\n{chosen}\nrejected:\n{rejected}"
    for wrong, message in (
        ([{"prompt": prompt, "chosen": "a"}], "pair 0 has no 'rejected'; its columns are"),
        ([prompt], "pair 0 is .* expected a row with prompt, chosen, rejected"),
        ([{"prompt": prompt, "chosen": "a", "rejected": TWO}], "expected a list of messages on"),
        ([{"prompt": TWO, **sides}], "pair 0: prompt is .* chosen and rejected are text; expected"),
        (
            [{"prompt": prompt, **sides}, {"prompt": TWO, **sides}],
            "pair 1: prompt is .* text; expected all three as text, or all as lists of messages",
        ),
        ([sides], "pair 0: prompt is None, and chosen and rejected are text; expected all three"),
    ):
        with pytest.raises(ValueError, match=message):
            chat.preferences(wrong)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": TWO, **sides}))
    with pytest.raises(ValueError, match="pairs.jsonl, row 0: prompt is"):
        chat.preferences(tmp_path / "pairs.jsonl")
    with pytest.raises(ValueError, match="beside rows or .*row 0 is .*: expected prompts of text"):
        chat.preferences([TWO], ["London"], ["Oslo"])
    for wrong in (lambda: chat.answers([TWO], closing=""), lambda: chat.answers([TWO], ["a"])):
        with pytest.raises(ValueError, match="conversations"):
            wrong()
