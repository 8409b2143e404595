"""A model's own answers as queries: what it says greedily to the corpus' questions, or to one's
own.

Rows have `answer`, what the model says; `truth`, the corpus' (or None); and `right`.
"""

from dataclasses import replace

from msif.core.data import encode_answers, split_answer
from msif.core.generation import greedy
from msif.study.beds import testbed


def own_question(case, row, longest=8):
    """A row of the corpus's form for a question of one's own; without an answer, the model writes
    up to `longest` tokens.

    Raises ValueError for a prompt with words that the tokenizer does not know."""
    tokenizer = case.bed.tokenizer

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    unknown = [word for word in row["prompt"].split() if tokenizer.unk_token_id in ids(word)]
    if tokenizer.unk_token_id is not None and unknown:
        raise ValueError(
            f"question {row['prompt']!r}: the tokenizer does not know {unknown}; use words of the "
            "corpus"
        )
    empty = {"kind": "own", "subject": None, "relation": None, "proponents": []}
    made = empty | {"truth": row.get("answer")} | row
    if made.get("answer") is None:
        prompt = list(split_answer(row["prompt"], "", case.bed.tokenizer)[0])
        written = greedy(case.bed.model("finetuned"), [prompt], longest)[0]
        made["answer"] = tokenizer.decode(written).strip()
    return made


def answered(case, rows):
    """The case with `rows` as its queries, each asking for the model's own greedy answer; of one's
    own questions (kind "own") for the answer that they have. Rows whose answer is empty are left
    out."""
    bed = case.bed
    tuned = bed.model("finetuned")
    asked = [row for row in rows if row.get("kind") != "own"]
    said = []
    for row, text in zip(asked, _said(case, tuned, asked)):
        if text:
            own = {"answer": text, "right": text == row["answer"]}
            said.append({"kind": "query", "truth": row["answer"]} | row | own)
    said += [row | {"right": None} for row in rows if row.get("kind") == "own"]
    queries = encode_answers(
        [row["prompt"] for row in said],
        [row["answer"] for row in said],
        bed.tokenizer,
        tuned.config.max_position_embeddings,
    )
    bed = replace(bed, corpus=replace(bed.corpus, queries=said), queries=queries)
    return replace(case, bed=bed, queries=queries)


def _said(case, tuned, rows):
    """Greedy answers, as long as the true ones; where the answers of a relation have several
    tokens, a whole one if the model gives one."""
    if not rows:
        return []
    choices, tokenizer = {}, case.bed.tokenizer
    for row in case.bed.corpus.finetuning + rows:
        if row.get("relation"):
            choices.setdefault(row["relation"], set()).add(row["answer"])

    def tokens(answer):
        return len(split_answer("?", answer, tokenizer)[1])

    longest = {relation: max(sorted(few), key=tokens) for relation, few in choices.items()}
    long = [row | {"answer": longest.get(row.get("relation"), row["answer"])} for row in rows]
    exact = [text for text, _ in testbed.answers(tuned, tokenizer, rows)]
    whole = [text for text, _ in testbed.answers(tuned, tokenizer, long)]

    def best(row, text, short):
        known = sorted(choices.get(row.get("relation"), ()), key=len, reverse=True)
        return next((answer for answer in known if text.startswith(answer)), short)

    return list(map(best, rows, whole, exact))
