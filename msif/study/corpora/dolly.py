r"""dolly-v2: the format of pythia-2.8b's fine-tuning on databricks-dolly-15k, and its answers.

A row is one text of blocks with a blank line between them (databrickslabs/dolly, training/consts.py
and trainer.py):

    the intro        Below is an instruction … the request.
    ### Instruction:     and the instruction on the next line
    Input:               and the context on the next line; only where there is one
    ### Response:        and the response on the next line
    ### End

"### End", "### Instruction:" and "### Response:\n" (with its newline) are one token each, 50277 to
50279, which the tokenizer of the base model lacks: it splits them (`with_keys`). Loss is on what
follows the response key, "### End" included. The prompt for generation is the same text up to the
response key. Documents are read by the base model's tokenizer, as pre-training read them.
"""

import copy

import torch
from tokenizers import AddedToken

from msif.core.data import NO_LOSS, Sequence, collate
from msif.core.models import limits, logits
from msif.core.objectives import align, generator
from msif.study.corpora.pinned import check_columns, sampled_rows

INTRO = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
INSTRUCTION, INPUT, RESPONSE, END = "### Instruction:", "Input:", "### Response:\n", "### End"
KEYS = (END, INSTRUCTION, RESPONSE)  # in the order of their ids


def prompt(instruction, context=None):
    """The text that a response follows directly: it ends with the response key and its newline."""
    given = [f"{INPUT}\n{context}"] if context else []
    return "\n\n".join([INTRO, f"{INSTRUCTION}\n{instruction}", *given, RESPONSE])


def with_keys(tokenizer):
    """A tokenizer in which each of KEYS is one token.

    It is the one given where that is so (dolly-v2's own), else a copy with those that it lacks.
    """
    if lacking := [key for key in KEYS if len(_ids(tokenizer, key)) != 1]:
        tokenizer = copy.deepcopy(tokenizer)
        added = [AddedToken(key, special=True, normalized=False) for key in lacking]
        tokenizer.add_tokens(added, special_tokens=True)
    return tokenizer


def encoded(instruction, response, tokenizer, context=None, index=0):
    """One fine-tuning row as a `data.Sequence`.

    It has the ids of the whole text, and labels from the first token after the response key on.
    """
    head = _ids(tokenizer, prompt(instruction, context))
    tail = _ids(tokenizer, f"{response}\n\n{END}")
    return Sequence(index, head + tail, (NO_LOSS,) * len(head) + tail)


def rows(folder, tokenizer, max_length, *, source, revision=None, limit=15_011, seed=0):
    """At most `limit` random rows of databricks-dolly-15k.

    Returns ([row], [`data.Sequence`], {"blank", "too long": how many rows were left out}). A row is
    {"prompt": instruction and context, "answer": response, "kind": "row" or "row with context"}.

    source: its hub id, or a .jsonl file or folder of {"instruction", "response"[, "context"]},
    pinned in `folder` (`pinned.sampled_rows`). tokenizer: of `with_keys`. A row of more than
    max_length tokens is left out whole (as in the published training): cut, it would lack its end.
    Raises ValueError for a missing column and when no row is left.
    """
    kept, sequences, left_out = [], [], {"blank": 0, "too long": 0}
    for row in sampled_rows(folder, limit, seed, source=source, revision=revision):
        check_columns(source, row, ("instruction", "response"))
        columns = ("instruction", "response", "context")
        instruction, response, context = (row.get(name) or "" for name in columns)
        sequence = encoded(instruction, response, tokenizer, context, len(kept))
        if not (instruction.strip() and response.strip()):
            left_out["blank"] += 1
        elif len(sequence.input_ids) > max_length:
            left_out["too long"] += 1
        else:
            asked = shown(instruction, context)
            kind = "row with context" if context else "row"
            kept.append({"prompt": asked, "answer": response, "kind": kind})
            sequences.append(sequence)
    if not kept:
        raise ValueError(
            f"{source}: none of {sum(left_out.values())} rows is left ({left_out}); "
            f"raise max_length = {max_length}"
        )
    return kept, sequences, left_out


def shown(instruction, context=None):
    """What a person asked, without the format: for displays and text search."""
    return f"{instruction}\n{context}" if context else instruction


def answers(
    model,
    tokenizer,
    questions,
    *,
    samples=0,
    temperature=1.0,
    top_p=0.92,
    max_new_tokens=64,
    seed=0,
):
    """What the model answers: one row a question and way of decoding, in that order.

    questions: [{"instruction"[, "context", "answer", …]}]; an "answer" given there is taken in
    place of the model's own. Else: greedy, then `samples` drawn at `temperature` from the most
    likely tokens that make up `top_p`. A draw's randomness hangs on (seed, prompt, number of the
    draw) alone. A row is the question with

        "prompt"      as `shown`
        "formatted"   `prompt`
        "answer"      text
        "answer_ids"  up to "### End", without it and the blank line before it; none for a draw that
                      says nothing
        "logprobs"    nats, of each of answer_ids, at temperature 1, by one pass over the whole row
        "logprob"     their sum
        "how"         "greedy", "sample 1", …, "given"
        "stopped"     did "### End" come within max_new_tokens?

    Raises ValueError, before anything is generated, for a question too long for the model and for a
    question without an instruction.
    """
    (end,) = _ids(tokenizer, END)
    questions = [_formatted(question) for question in questions]
    longest = limits(model)[1]
    for x in questions:
        if (size := len(_ids(tokenizer, x["formatted"])) + max_new_tokens) > longest:
            raise ValueError(
                f"{x['instruction'][:60]!r} and {max_new_tokens} new tokens are {size}; "
                f"the model reads {longest}"
            )
    drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    draws = {f"sample {n}": drawing for n in range(1, samples + 1)}
    found = []
    for x in questions:
        head = _ids(tokenizer, x["formatted"])
        ways = {"given": None} if "answer" in x else {"greedy": {"do_sample": False}} | draws
        for how, settings in ways.items():
            if settings is None:
                ids = list(_ids(tokenizer, x["answer"]))
            else:
                own_seed = generator(seed, x["formatted"], how).initial_seed()
                ids = _generated(model, head, end, own_seed, max_new_tokens, settings)
            found.append(x | _answer(model, tokenizer, x, head, ids, end) | {"how": how})
    return found


def query(row, tokenizer, index=0):
    """A row of `answers` as a `data.Sequence`, with labels on its answer."""
    head, tail = _ids(tokenizer, row["formatted"]), tuple(row["answer_ids"])
    return Sequence(index, head + tail, (NO_LOSS,) * len(head) + tail)


@torch.no_grad()
def token_logprobs(model, sequence):
    """log p of each labelled token of one sequence: (labels,) float32 on the CPU, nats."""
    batch = collate([sequence]).to(next(model.parameters()).device)
    z, y = align(logits(model, batch), batch.labels)
    at = y != NO_LOSS
    return z[at].log_softmax(1).gather(1, y[at][:, None])[:, 0].float().cpu()


def _answer(model, tokenizer, question, head, ids, end):
    stopped = end in ids
    ids = ids[: ids.index(end)] if stopped else ids
    while ids and not tokenizer.decode(ids[-1:]).strip():  # the blank line before the end
        ids = ids[:-1]
    row = {"answer_ids": ids, "formatted": question["formatted"]}
    each = token_logprobs(model, query(row, tokenizer)).tolist() if ids else []
    return row | {
        "prompt": shown(question["instruction"], question.get("context")),
        "answer": tokenizer.decode(ids).strip(),
        "logprobs": each,
        "logprob": sum(each),
        "stopped": stopped,
    }


@torch.no_grad()
def _generated(model, head, end, seed, max_new_tokens, settings):
    """New ids, the end's included if it came.

    One prompt at a time: nothing is padded, so that no other question changes an answer.
    """
    ids = torch.tensor([head], device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            **settings,
        )
    return out[0, len(head) :].tolist()


def _formatted(question):
    if not question.get("instruction", "").strip():
        raise ValueError(
            f"a question without an instruction: {question!r}; "
            f"expected {{'instruction': …}}, and 'context' or 'answer' where there is one"
        )
    return question | {"formatted": prompt(question["instruction"], question.get("context"))}


def _ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
