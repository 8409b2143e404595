"""How methods, and differences between them, are called on pages that people read."""

from typing import NamedTuple

from msif.study.tracing.names import Name

NAMES = {
    "multi_stage": "multi-stage",
    "multi_stage_source": "multi-stage, pre-training unrolled",
    "pretraining_only": "without fine-tuning's curvature",
    "finetuning_only": "without pre-training's curvature",
    "gradient_dot": "dot product of gradients",
    "gradient_dot_finetuned": "dot product of gradients at the fine-tuned model",
    "gradient_dot_pretrained": "dot product of gradients at the pre-trained model",
    "single_stage_finetuned": "single-stage",
    "single_stage_pretrained": "single-stage at the pre-trained model",
    "tracincp": "TracInCP",
    "trackstar": "TrackStar",
    "trackstar_pretrained": "TrackStar at the pre-trained model",
    "trak": "TRAK",
    "trak_pretrained": "TRAK at the pre-trained model",
    "hidden_mean": "hidden states, mean",
    "hidden_mean_pretrained": "hidden states of the pre-trained model, mean",
    "hidden_last": "hidden states, last",
    "hidden_input": "input embeddings, mean",
    "representation": "hidden states, mean",
    "bm25": "BM25",
    "tfidf": "TF-IDF",
    "embeddings": "sentence embeddings",
    "word_order": "a rule of word order",
    "statements": "counting the statements",
}


class Finding(NamedTuple):
    """A key number, what it counts, and the claim that it carries."""

    number: str
    what: str
    claim: str


def named(method):
    """A method's name for readers.

    "embeddings/raw" -> "sentence embeddings", "trak_trajectory/normalised" -> "TRAK, over
    checkpoints, normalised", "multi_stage + bm25" -> "multi-stage, fused with BM25".
    """
    column = Name.of(method) if "/" in method else Name(method, "raw")
    words = ", fused with ".join(map(_plain, column.method.split(" + ")))
    return f"{words}, normalised" if column.form == "normalised" else words


def _plain(method):
    along = method.removesuffix("_trajectory")
    words = NAMES.get(along) or along.replace("_", " ")
    return words if along == method else f"{words}, over checkpoints"


def against(lead, error, rival):
    """How a difference with its standard error reads."""
    if abs(lead) <= 2 * error:
        return f"level with {rival} ({lead:+.3f} ± {error:.3f})"
    place = "ahead of" if lead > 0 else "behind"
    return f"{place} {rival} by {abs(lead):.3f} ± {error:.3f}"


def above(value, other):
    """How a value reads beside another: "above", "equal to" or "below"."""
    if value > other:
        return "above"
    return "equal to" if value == other else "below"
