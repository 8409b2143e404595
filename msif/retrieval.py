"""Text search as a baseline: what does a query's wording find without looking into any model?"""
import numpy as np

from msif.extras import need


def bm25(documents, queries, stop_words="en"):
    """Okapi BM25 of every document for every query (lists of strings), tokenised into words: (q, n) float32, no unit.

    `queries` should be question + answer, the strongest form. stop_words: removed from both ("en", or None for none).
    """
    bm25s = need("bm25s")
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(documents, stopwords=stop_words, show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords=stop_words, return_ids=False, show_progress=False)
    return np.stack([retriever.get_scores(words) for words in tokens])
