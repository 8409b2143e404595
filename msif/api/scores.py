"""What a trace found: scores in memory or in a folder, and the documents that stand first."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from msif.api.own import instead
from msif.api.stages import Stage
from msif.core import checks, data, files, influence
from msif.core.extras import need
from msif.core.generation import answer_start, log_probabilities
from msif.core.layers import Vectors
from msif.core.resources import require
from msif.scale import streaming
from msif.view.words import visible


@dataclass(frozen=True)
class Ranked:
    """A document in a question's ranking.

    rank: 1, 2, … from the top, −1, −2, … from the bottom. document: its index. score: df/dw, nats
    per unit of document weight. normalised: that over the norm of the document's gradient.
    """

    rank: int
    document: int
    score: float
    normalised: float
    text: str


@dataclass(frozen=True)
class Said:
    """A question's answer, and what the model itself says.

    log_probability: f, of the answer given the prompt, nats. own: the model's own greedy words, as
    many tokens as the answer has.
    """

    prompt: str
    answer: str
    log_probability: float
    own: str

    def __str__(self) -> str:
        found = f"{self.prompt} → {self.answer}   (log p = {self.log_probability:.2f} nats"
        return f"{found})" if self.own == self.answer else f"{found}; the model says: {self.own})"


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """What `trace` found: how much each document of a stage raised each answer.

    Positive: a proponent, more weight on the document makes the answer more likely. stage: which of
    `stages` the n documents belong to. w: the preconditioned questions, {layer: (q, o, i)}, as
    `influence.score` reads them. found: the scores, or the folder that holds them. shown: how many
    documents a question a table and the explorer show.

    >>> scores = msif.trace(stages, [("Where was Ada born?", "London")], docs, top=1)
    >>> tuple(scores.values.shape)
    (1, 2)
    >>> [[first]] = scores.top()
    >>> first.document in scores.index.tolist()
    True
    >>> scores.write_parquet("top.parquet")
    """

    stages: tuple[Stage, ...]
    questions: list[data.Sequence]
    documents: Iterable[data.Sequence]
    stage: int
    w: Vectors
    found: influence.Scores | Path
    shown: int = 10

    @property
    def values(self) -> Tensor:
        """(q, n) float32 (float64 of such a model): df/dw, nats per unit of document weight.

        In the order of `index`. From a folder all blocks are read: MemoryError if too many.
        """
        return self._whole().values

    @property
    def norms(self) -> Tensor:
        """(n,): ‖∇ℓ_z‖ of each document over the tracked layers."""
        found = self._whole().norms
        assert found is not None
        return found

    @property
    def index(self) -> Tensor:
        """(n,) int64: the documents' numbers."""
        if isinstance(self.found, Path):
            return torch.cat([index for index, _ in streaming.read_scores(self.found)])
        return torch.tensor([x.index for x in self.documents])

    def normalised(self) -> Tensor:
        """(q, n): the values over the norms, so that long or badly fitted documents have no
        advantage. For finding documents it is usually the better one."""
        return self._whole().normalised()

    def top(
        self, count: int | None = None, *, normalised: bool = True, lowest: bool = False
    ) -> list[list[Ranked]]:
        """For each question the `count` documents of highest score (lowest: of lowest), most
        extreme first, ties by index."""
        numbers = self.extremes(self.shown if count is None else count, normalised, lowest)
        both = self.among({n for row in numbers for n in row})
        texts = {n: self.stages[self.stage].model.text(x) for n, (x, _, _) in both.items()}
        sign = -1 if lowest else 1

        def ranked(k, rank, n):
            value, unit = (float(column[k]) for column in both[n][1:])
            return Ranked(sign * rank, n, value, unit, texts[n])

        return [
            [ranked(k, rank, n) for rank, n in enumerate(row, 1)] for k, row in enumerate(numbers)
        ]

    def table(self, *, normalised: bool = True, width: int = 72) -> str:
        """The first documents of each question as text, cut to `width` characters each."""
        mark = "*" if normalised else ""
        head = _HEAD.format("score" if normalised else "score*", f"normalised{mark}")
        lines = []
        for said, rows in zip(self.said(), self.top(normalised=normalised)):
            lines += [visible(str(said)), head]
            lines += [_LINE.format(x, text=_short(x.text, width)) for x in rows] + [""]
        return "\n".join([*lines, _TOLD])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return (
            f"<scores for {len(self.questions)} questions; print them to see the first documents>"
        )

    def said(self) -> list[Said]:
        """The questions as text, beside what the model itself says. Raises ValueError if its
        weights have changed."""
        model = self.stages[-1].model
        self.stages[-1].check_model()
        f = log_probabilities(model.tracked.model, self.questions).tolist()
        own = instead(model.tracked.model, model.tokenizer, self.questions)

        def text(ids):
            return str(model.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

        found = []
        for x, value, ids in zip(self.questions, f, own):
            start = answer_start(x)
            prompt, answer = text(x.input_ids[:start]), text(x.input_ids[start:])
            found.append(Said(prompt, answer, value, text(ids)))
        return found

    def write_parquet(self, path: str | Path, *, normalised: bool = True) -> None:
        """Write the first documents of all questions to a parquet file, one a row: question,
        prompt, answer, log_probability, own, rank, document, score, normalised, text."""
        rows = [
            {"question": k, **vars(said), **vars(x)}
            for k, (said, found) in enumerate(zip(self.said(), self.top(normalised=normalised)))
            for x in found
        ]
        pa, pq = need("pyarrow"), need("pyarrow.parquet")
        with files.atomic(path) as partial:
            pq.write_table(pa.Table.from_pylist(rows), partial)

    def _whole(self):
        """`influence.Scores` of all documents."""
        if not isinstance(self.found, Path):
            return self.found
        disk = sum(path.stat().st_size for path in self.found.glob("part-*"))
        require(memory=2 * disk, what=f"all scores in {self.found}")
        parts = [scores for _, scores in streaming.read_scores(self.found)]
        norms = [x.norms for x in parts if x.norms is not None]
        return influence.Scores(torch.cat([x.values for x in parts], 1), torch.cat(norms))

    def extremes(self, count: int, normalised: bool, lowest: bool) -> list[list[int]]:
        """The `count` documents of highest or lowest score: q lists of their numbers."""
        count = checks.whole("count", count)
        if isinstance(self.found, Path):
            found = streaming.top_scores(self.found, count, normalised)
            return (found.opponents if lowest else found.proponents).tolist()
        values = self.found.normalised() if normalised else self.found.values
        rising = self.index.argsort()  # ties by index, in whatever order the documents came
        order = values[:, rising].sort(dim=1, descending=not lowest, stable=True).indices
        return self.index[rising[order[:, :count].cpu()]].tolist()

    def among(self, numbers: Collection[int]) -> dict[int, tuple[data.Sequence, Tensor, Tensor]]:
        """{number: (the document, its values (q,), its normalised values (q,))}."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for index, scores in self._blocks():
            unit = scores.normalised()
            for at, n in enumerate(index.tolist()):
                if n in numbers:
                    found[n] = scores.values[:, at], unit[:, at]
        documents = {x.index: x for x in self.documents if x.index in found}
        return {n: (documents[n], *found[n]) for n in sorted(found)}

    def _blocks(self):
        if isinstance(self.found, Path):
            return streaming.read_scores(self.found)
        return [(self.index, self.found)]


_HEAD = " rank  document {:>11} {:>11}  text"
_TOLD = (
    "* ranked by. score: df/dw, nats per unit of document weight, positive: more weight makes the "
    "answer\nlikelier. normalised: the score over the norm of the document's gradient."
)
_LINE = "{0.rank:>5} {0.document:>9} {0.score:>11.4g} {0.normalised:>11.4g}  {text}"


def _short(text, width):
    line = visible(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"
