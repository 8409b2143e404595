"""Names of columns of scores, keys of files of tensors and so written as text, and what they are
called for readers (`named`)."""

from dataclasses import dataclass

FORMS = ("raw", "normalised")

# A method's key, less "_trajectory", and its name on pages and in figures.
NAMES = {
    "multi_stage": "multi-stage",
    "multi_stage_refined": "multi-stage, with exact products",
    "multi_stage_shampoo": "multi-stage by corrected Shampoo",
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
    "bayesian": "Bayesian, both stages sampled",
    "hidden_mean": "hidden states, mean",
    "hidden_mean_pretrained": "hidden states of the pre-trained model, mean",
    "hidden_last": "hidden states, last",
    "hidden_input": "input embeddings, mean",
    "representation": "hidden states, mean, not centred",
    "bm25": "BM25",
    "bm25_question": "BM25 of the question alone",
    "bm25_all_words": "BM25, stop words kept",
    "tfidf": "TF-IDF",
    "embeddings": "sentence embeddings",
    "word_order": "a rule of word order",
    "statements": "counting the statements",
}


@dataclass(frozen=True)
class Name:
    """A method's score in one of its forms: "multi_stage/normalised"."""

    method: str
    form: str

    @classmethod
    def of(cls, text):
        """The name of a column; ValueError unless it is "method/form" with a form of `FORMS`."""
        method, _, form = text.rpartition("/")
        if not method or form not in FORMS:
            raise ValueError(f"column {text!r}: expected a method and one of {FORMS}, as in a/raw")
        return cls(method, form)

    def __str__(self):
        return f"{self.method}/{self.form}"


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
