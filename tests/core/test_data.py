"""Laws of tokenised data: what a label, a mask and an order mean,
and that bad input is refused by name."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from msif.core.data import (
    NO_LOSS,
    Sequence,
    batches,
    check,
    collate,
    digest,
    encode_answers,
    encode_documents,
    load_texts,
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
    """Byte-level, as GPT-2's: a space belongs to the token that follows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def metaspace():
    """As Llama's: a space is put before the text, and a <s> begins every document."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


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
@pytest.mark.parametrize("prompt", ["the cat sat on", "the bird ?\n", "the old "])
def test_a_row_is_the_prompt_as_tokenised_alone_and_then_the_labelled_answer(name, prompt, request):
    tokenizer = request.getfixturevalue(name)
    (row,) = encode_answers([prompt], ["mat"], tokenizer, 64)
    head = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert row.input_ids[: len(head)] == head
    assert row.labels == (NO_LOSS,) * len(head) + row.input_ids[len(head) :]
    assert tokenizer.decode(row.input_ids[len(head) :]).strip() == "mat"


@pytest.mark.parametrize("name", ["bpe", "metaspace"])
def test_an_answer_is_tokenised_as_in_running_text(name, request):
    tokenizer = request.getfixturevalue(name)
    (row,) = encode_answers(["the cat sat on the"], ["mat ."], tokenizer, 64)
    assert list(row.input_ids) == tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]


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


def test_check_names_the_sequence_and_the_value():
    good = Sequence(0, (1, 2, 3), (NO_LOSS, 2, 3))
    check([good, Sequence(1, (1, 2), 0)], vocab_size=4, context=3)
    for bad, message in {
        Sequence(7, (1, 4), (1, 2)): "sequence 7 has token id 4; the model's vocabulary has 4",
        Sequence(7, (1, 2), (1, -1)): "sequence 7 has token id -1",
        Sequence(7, (1, 2, 3, 1), (1, 2, 3, 1)): "sequence 7 has 4 tokens; expected 1 to 3",
        Sequence(7, (), ()): "sequence 7 has 0 tokens",
        Sequence(7, (1, 2), (1,)): "sequence 7 has 1 labels for 2 tokens",
        Sequence(7, (1, 2), (1, NO_LOSS)): "sequence 7 has no label to predict",
    }.items():
        with pytest.raises(ValueError, match=message):
            check([good, bad], vocab_size=4, context=3)
    with pytest.raises(ValueError, match="no sequences"):
        check([], vocab_size=4, context=3)


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


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The same texts in every format, and in a folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    table = datasets.Dataset.from_dict({"text": TEXTS, "number": [0, 1, 2]})
    table.to_parquet(tmp_path / "a.parquet")
    table.to_json(tmp_path / "a.jsonl")
    table.to_json(folder / "train.jsonl")
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS) + "\n")
    return tmp_path


@pytest.mark.parametrize("source", ["a.jsonl", "a.parquet", "a.txt", "folder"])
def test_every_format_gives_the_same_texts_streamed_or_not(files, source):
    assert load_texts(files / source) == TEXTS
    assert load_texts(files / source, limit=2) == TEXTS[:2]
    streamed = load_texts(files / source, streaming=True, limit=2)
    assert not isinstance(streamed, list) and list(streamed) == TEXTS[:2]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_refused_and_the_columns_named(files, streaming):
    with pytest.raises(ValueError, match="no column 'story'; its columns are number, text"):
        load_texts(files / "a.jsonl", column="story", streaming=streaming)
    with pytest.raises(ValueError, match="row 0: 'number' is 0; expected text"):
        list(load_texts(files / "a.jsonl", column="number", streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name, content", [("b.jsonl", ""), ("b.txt", ""), ("b.txt", "\n \n")])
def test_an_empty_corpus_is_refused(files, name, content, streaming):
    (files / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.* empty"):
        load_texts(files / name, streaming=streaming)


def test_an_empty_parquet_and_an_empty_folder_are_refused(files):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": []}).to_parquet(files / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet .*no data"):
        load_texts(files / "b.parquet")
    (files / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing doesn't contain any data files"):
        load_texts(files / "nothing")


@pytest.mark.parametrize("source", ["missing.jsonl", "missing"])
def test_a_missing_path_is_refused_without_asking_the_hub(files, source):
    with pytest.raises(FileNotFoundError, match=f"{source} does not exist"):
        load_texts(files / source)


def test_unknown_format_split_and_limit_are_refused(files):
    (files / "a.csv").write_text("text\nhello\n")
    with pytest.raises(ValueError, match="a.csv is not a known format; expected .jsonl"):
        load_texts(files / "a.csv")
    with pytest.raises(ValueError, match="validation"):
        load_texts(files / "folder", split="validation")
    with pytest.raises(ValueError, match="limit is 0"):
        load_texts(files / "a.txt", limit=0)


def test_a_broken_line_of_json_is_refused(files):
    (files / "b.jsonl").write_text(json.dumps({"text": "one two"}) + '\n{"text": "thr')
    with pytest.raises(ValueError, match="b.jsonl .*JSON"):
        load_texts(files / "b.jsonl")
