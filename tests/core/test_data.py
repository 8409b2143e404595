"""Laws of tokenised data: what a label, a mask and an order mean,
and that bad input is refused by name."""

import pytest
import torch
from support.tokenizers_of_kinds import byte_level, like_llama
from transformers import AutoTokenizer

from msif.core.data import (
    NO_LOSS,
    Sequence,
    batches,
    buckets,
    collate,
    digest,
    encode_answers,
    encode_documents,
    row_table,
    split_answer,
    word_tokenizer,
)

TEXTS = [
    "the cat sat on the mat .",
    "a dog barked .",
    "the bird sang all day long in the old tree .",
]


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def bpe():
    return byte_level(TEXTS)


@pytest.fixture(scope="module")
def metaspace():
    return like_llama(TEXTS)


def test_padding_is_known_by_the_mask_and_a_real_token_with_id_zero_stays():
    batch = collate([Sequence(4, (0, 5, 0), (0, 5, 0)), Sequence(2, (7,), (7,))])
    assert batch.index.tolist() == [4, 2]
    assert batch.input_ids.tolist() == [[0, 5, 0], [7, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[0, 5, 0], [7, NO_LOSS, NO_LOSS]]
    assert {t.dtype for t in vars(batch).values()} == {torch.int64}


def test_a_batch_of_classes_has_one_label_a_sequence():
    assert collate([Sequence(0, (1, 2), 3), Sequence(1, (4,), 0)]).labels.tolist() == [3, 0]


def test_batch_moves_whole():
    batch = collate([Sequence(0, (1, 2), (1, 2))]).to("meta")
    assert all(t.device.type == "meta" for t in vars(batch).values())


def test_batches_keep_the_order_and_every_sequence(words):
    sequences = encode_documents(TEXTS * 3, words, 64)
    for size in (1, 2, 4, 100):
        assert torch.cat([b.index for b in batches(sequences, size)]).tolist() == list(range(9))
    with pytest.raises(ValueError, match="batch size is 0"):
        batches(sequences, 0)


def test_documents_have_a_loss_on_every_token_and_are_cut_at_max_length(words):
    whole, cut = encode_documents(TEXTS, words, 64), encode_documents(TEXTS, words, 5)
    assert [words.decode(s.input_ids) for s in whole] == TEXTS
    assert all(s.labels == s.input_ids for s in whole)
    assert [s.input_ids for s in cut] == [s.input_ids[:5] for s in whole]


def test_documents_carry_the_special_tokens_of_their_tokenizer(metaspace):
    assert encode_documents(TEXTS, metaspace, 64)[0].input_ids[0] == metaspace.bos_token_id


def test_blank_documents_are_passed_over_and_the_others_keep_their_numbers(words):
    found = encode_documents(["", TEXTS[0], "  ", "\n", TEXTS[1]], words, 64)
    assert [x.index for x in found] == [1, 4]
    with pytest.raises(ValueError, match="corpus is empty"):
        encode_documents(["", " "], words, 64)


@pytest.mark.parametrize("wrong", [0, 1, -1, 2.5, "8", None, True])
def test_a_length_that_is_none_is_refused(words, wrong):
    for encode in (
        lambda: encode_documents(TEXTS, words, wrong),
        lambda: encode_answers(["the"], ["cat"], words, wrong),
    ):
        with pytest.raises(ValueError, match="max_length is .*; expected a whole number, at le"):
            encode()


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "8", None, True])
def test_a_batch_size_that_is_none_is_refused(wrong):
    for divided in (batches, buckets):
        with pytest.raises(ValueError, match="batch size is .*; expected a whole number, at leas"):
            divided([Sequence(0, (1, 2), (1, 2))], wrong)


def test_what_is_no_list_of_texts_is_refused(words):
    for call, message in {
        lambda: encode_documents("the cat", words, 9): "'the cat' is of type str; expected a list",
        lambda: encode_documents({"the cat": 1}, words, 9): "of type dict",
        lambda: encode_documents({"the cat"}, words, 9): "of type set",
        lambda: encode_documents(3, words, 9): "3 is of type int",
        lambda: encode_documents(["the cat", None], words, 9): "document 1 is None",
        lambda: encode_documents([["the", "cat"]], words, 9): r"document 0 is \['the', 'cat'\]",
        lambda: encode_documents(["the cat", "a \ud83d b"], words, 9): "document 1 has '.ud83d' at"
        " character 2, half of a character",
        lambda: encode_answers("the", "cat", words, 9): "'the' is of type str",
        lambda: encode_answers(["the", "a", "t"], "cat", words, 9): "'cat' is of type str",
        lambda: encode_answers(["the"], [None], words, 9): "answer 0 is None",
        lambda: encode_answers(["the", "a"], ["cat"], words, 9): "2 prompts and 1 answers",
        lambda: word_tokenizer("the cat"): "'the cat' is of type str",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_answers_of_unknown_words_are_refused_or_called_out(words):
    with pytest.raises(ValueError, match="row 1 has the answer 'zebra', of which .*knows nothing"):
        encode_answers(["the", "a"], ["cat", "zebra"], words, 9)
    with pytest.warns(UserWarning, match=r"1 answer.s. have words .*row 1: zebra.*<unk>"):
        encode_answers(["the", "a"], ["cat", "old zebra"], words, 9)


def test_a_row_is_shown_token_by_token_with_its_labels(metaspace):
    (row,) = encode_answers(["the cat sat on the"], ["mat ."], metaspace, 64)
    head, *lines = row_table(row, metaspace).split("\n")
    assert head.split() == ["id", "token", "label"] and len(lines) == len(row.input_ids)
    assert lines[0].split() == ["0", "1", "'<s>'", "–"]
    for n, line in enumerate(lines):
        assert line.split()[:2] == [str(n), str(row.input_ids[n])]
        assert line.endswith("–") == (row.labels[n] == NO_LOSS)
    assert row_table(Sequence(0, (1, 2), 3), metaspace).endswith("class 3")


def test_documents_that_cannot_be_used_are_refused(words):
    with pytest.raises(ValueError, match="corpus is empty"):
        encode_documents([], words, 64)
    with pytest.raises(ValueError, match=r"document 1, 'cat', has 1 token"):
        encode_documents(["the cat", "cat"], words, 64)
    with pytest.raises(
        ValueError, match=r"all 3 documents are longer than max_length = 3 .* has 4\)"
    ):
        encode_documents(TEXTS, words, 3)


@pytest.mark.parametrize("name", ["words", "bpe", "metaspace"])
@pytest.mark.parametrize("prompt", ["the cat sat on", "the bird ?\n", "the old ", "the ("])
def test_a_row_is_the_prompt_as_a_model_continues_it_and_then_the_labelled_answer(
    name, prompt, request
):
    tokenizer = request.getfixturevalue(name)
    (row,) = encode_answers([prompt], ["mat"], tokenizer, 64)
    head, tail = split_answer(prompt, "mat", tokenizer)
    assert head == tuple(tokenizer(prompt)["input_ids"])
    assert row.input_ids == head + tail and row.labels == (NO_LOSS,) * len(head) + tail
    assert tokenizer.decode(tail).strip() == "mat"


@pytest.mark.parametrize("name", ["words", "bpe", "metaspace"])
def test_a_row_is_what_the_document_of_its_text_is(name, request):
    tokenizer = request.getfixturevalue(name)
    (row,) = encode_answers(["the cat sat on the"], ["mat ."], tokenizer, 64)
    assert row.input_ids == encode_documents(TEXTS, tokenizer, 64)[0].input_ids


def test_loss_on_all_labels_the_prompt_too(words):
    (row,) = encode_answers(["the cat"], ["sat"], words, 64, loss_on="all")
    assert row.labels == row.input_ids
    with pytest.raises(ValueError, match="loss_on is 'prompt'"):
        encode_answers(["the cat"], ["sat"], words, 64, loss_on="prompt")


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_answer_without_tokens_is_refused_by_its_row(words, answer):
    with pytest.raises(ValueError, match="row 1 has an answer without tokens"):
        encode_answers(["the cat", "a dog"], ["sat", answer], words, 64)


def test_an_answer_is_never_cut(words):
    with pytest.raises(ValueError, match="row 0 has 4 tokens, max_length is 3"):
        encode_answers(["the cat sat"], ["on"], words, 3)
    with pytest.raises(ValueError, match="row 0 has 4 tokens, max_length is 3"):  # said first
        encode_answers(["the cat sat"], ["zebra"], words, 3)


def test_digest_sees_ids_labels_and_order():
    a, b = Sequence(0, (1, 2), (1, 2)), Sequence(1, (3,), (3,))
    different = [
        [a, b],
        [b, a],
        [a],
        [Sequence(0, (1, 2), (NO_LOSS, 2)), b],
        [Sequence(0, (1, 2), 1), b],
    ]
    assert len({digest(sequences) for sequences in different}) == len(different)
    assert digest([a, b]) == digest(iter([a, b]))


def test_word_tokenizer_does_not_depend_on_order_and_survives_saving(words, tmp_path):
    words.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for other in (reloaded, word_tokenizer(reversed(TEXTS))):
        assert other.get_vocab() == words.get_vocab()
        assert (
            other(TEXTS + ["the zebra ."])["input_ids"]
            == words(TEXTS + ["the zebra ."])["input_ids"]
        )
    assert reloaded.pad_token_id == 0 and reloaded("zebra")["input_ids"] == [reloaded.unk_token_id]


def test_texts_of_which_nothing_is_known_are_called_out():
    words = word_tokenizer(["Ada was born"])
    with pytest.warns(UserWarning, match=r"2 of 3 documents have no word .*document 0, 2\)"):
        encode_documents(["Bo came", "Ada came", "from Paris"], words, 8)
    with pytest.warns(UserWarning, match=r"1 of 2 prompts have no word .*prompt 1\)"):
        encode_answers(["Ada", "Bo"], ["born", "born"], words, 8)


def test_advice_does_not_go_beyond_what_the_model_reads():
    words = word_tokenizer(["a b c d e"])
    for context, said in ((9, "raise max_length or"), (3, "the model reads no more: shorten")):
        with pytest.raises(ValueError, match=said):
            encode_answers(["a b c"], ["d"], words, 3, context=context)
    with pytest.raises(ValueError, match="the model reads no more: split the documents"):
        encode_documents(["a b c d"], words, 3, context=3)
