"""A small model to start from, made for one corpus: its tokenizer, and weights that are drawn."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from msif.core.models import tiny_gpt_neox
from msif.study import scratch
from msif.study.corpora.corpus import check_ranges


def start_model(folder, corpus, pieces=4096, width=128, layers=2, heads=4, context=128, seed=0):
    """Write into `folder` what pre-training on `corpus` starts from, in the Hugging Face layout.

    That is a `bpe_tokenizer` and a GPT-NeoX with weights drawn from `seed`. Returns `folder`;
    {"source": folder} is a model for `testbed.pretrain`.
    """
    tokenizer = bpe_tokenizer(corpus, pieces)
    tokenizer.save_pretrained(folder)
    tiny_gpt_neox(len(tokenizer), width, layers, heads, context, seed).save_pretrained(folder)
    return folder


def started(corpus, seed=0, **settings):
    """{"source": folder} of a `start_model` with these settings, kept in scratch/.

    It is the model for `testbed.trained`.
    """

    def make(folder):
        start_model(folder, corpus, seed=seed, **settings)

    key = {"corpus": corpus.digest(), "seed": seed, **settings}
    return {"source": str(scratch.built("start", key, make))}


def bpe_tokenizer(corpus, pieces=4096):
    """Byte-level BPE of at most `pieces` pieces (with <pad>).

    It is trained on the corpus' documents, questions and answers. Every text can be written in it;
    a text is read as if a space stood before it, so that a name has the same pieces at its
    beginning and inside. Raises ValueError for fewer pieces than bytes.
    """
    check_ranges(pieces=(pieces, 257, 1_000_000))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=["<pad>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    rows = corpus.finetuning + corpus.queries
    texts = [d["text"] for d in corpus.documents] + [f"{r['prompt']} {r['answer']}" for r in rows]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", clean_up_tokenization_spaces=False
    )
