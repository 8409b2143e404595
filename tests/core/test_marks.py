"""Marks of a chat template ({% generation %}): by turn and by whole characters, or refused."""

import pytest
from support.tokenizers_of_kinds import CHAT, MARKED, byte_level
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from msif.core.conversations import encode, opened
from msif.core.data import NO_LOSS

TEXTS = ["system user assistant Where was Ada born ? Paris London : ."]
BARE = MARKED.replace("<|im_end|>{% endgen", "{% endgen").replace("{{ '\\n' }}", "<|im_end|>\n")
TWICE = (  # the first turn of the assistant is marked twice, the second not at all
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.index == 2 %}"
    "{% generation %}{{ m.content }}{% endgeneration %} {% generation %}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)


def user(text):
    return {"role": "user", "content": text}


def told(text):
    return {"role": "assistant", "content": text}


def by_bytes(texts, template):
    """As Llama 2's: what is no word is read byte by byte."""
    model = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    model.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    model.train_from_iterator(texts * 20, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    found.chat_template = template
    return found


def said(row, tokenizer):
    """The text of each stretch of labels."""
    found, inside = [], False
    for label in row.labels:
        if label != NO_LOSS:
            found += [] if inside else [[]]
            found[-1].append(label)
        inside = label != NO_LOSS
    return [tokenizer.decode(x) for x in found]


@pytest.mark.parametrize("make", [byte_level, by_bytes])
@pytest.mark.parametrize("answer", ["Paris é", "é", "日本", "Paris 😀", "Paris"])
def test_a_character_of_several_tokens_is_marked_whole(make, answer):
    """Where marks end with the answer, its labels are all of its bytes, in every turn."""
    tokenizer = make(TEXTS, BARE)
    chat = [user("Where é"), told(answer), user("é"), told(answer)]
    [row] = encode([chat], tokenizer, 999)
    expected = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert row.input_ids == tuple(expected) and said(row, tokenizer) == [answer, answer]
    [last] = encode([chat], tokenizer, 999, "last")
    assert last.input_ids == row.input_ids and said(last, tokenizer) == [answer]


@pytest.mark.parametrize("loss_on", ["turns", "last", "rest"])
@pytest.mark.parametrize("template", [BARE, MARKED, CHAT])
def test_an_answer_of_the_model_s_own_has_the_loss_of_a_given_one(template, loss_on):
    """Marks or none, what closes it included."""
    tokenizer = byte_level(TEXTS, template)
    [row] = encode([[user("Where ?"), told("Paris")]], tokenizer, 999, loss_on)
    head, closing, labels = opened([user("Where ?")], tokenizer, "row 0", loss_on)
    answer = row.input_ids[len(head) : -len(closing)]
    assert head + answer + closing == row.input_ids and tokenizer.decode(answer) == "Paris"
    assert (NO_LOSS,) * len(head) + answer + labels == row.labels
    assert (NO_LOSS in labels) == (template != CHAT and loss_on != "rest")


def test_the_rest_needs_no_marks_for_an_answer_of_the_model_s_own():
    """As a given one does not."""
    tokenizer = byte_level(TEXTS, TWICE)
    chat = [user("Where ?"), told("London"), user("Where ?")]
    with pytest.raises(ValueError, match="row 0: the chat template .*marks 2 stretches"):
        opened(chat, tokenizer, "row 0", "last")
    with pytest.raises(ValueError, match="loss_on is 'all'; expected 'turns', 'last' or 'rest'"):
        opened(chat, tokenizer, "row 0", "all")
    head, closing, labels = opened(chat, tokenizer, "row 0", "rest")
    [row] = encode([[*chat, told("Paris")]], tokenizer, 999, "rest")
    assert row.input_ids[: len(head)] == head and closing == labels == row.labels[-len(closing) :]


@pytest.mark.parametrize(
    "template, message",
    [
        (TWICE, "marks 2 stretches .* for 2 turns .*message 3 in none"),
        (TWICE.replace("loop.index == 2", "m.role == 'assistant'"), "marks 4 stretches .* 2 turns"),
        (MARKED.replace("'assistant'", "'user'"), "message 1 in none, message 3 in none"),
        (BARE.replace("{{ m.content }}{% endgen", "{{ m.content[:3] }}{% endgen"), "1 in none"),
    ],
)
def test_marks_are_counted_by_turn(template, message):
    """By what they hold: equal turns, too, are told apart."""
    tokenizer = byte_level(TEXTS, template)
    for answers in (("London", "Paris ."), ("Paris", "Paris")):
        chat = [x for answer in answers for x in (user("Where ?"), told(answer))]
        with pytest.raises(ValueError, match=f"row 0: the chat template .*{message}"):
            encode([chat], tokenizer, 999)
