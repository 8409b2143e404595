"""How much each document raised each answer."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from msif.api.kinds import adapters_digest, of_pairs
from msif.api.lineage import foreign
from msif.api.scores import Scores
from msif.api.stages import Stage, layers_key, loss_of_pairs, name_of
from msif.api.streams import Stream
from msif.core import checks, data, files, influence, pairs, queries
from msif.core.layers import Vectors
from msif.scale import processes, streaming

DOUBTFUL = 10.0  # nats: more than one document can be said to change an answer by, to first order


def trace(
    stages: Sequence[Stage],
    questions: Iterable[data.Sequence | str | tuple[str, str | None]],
    documents: Iterable[data.Sequence],
    *,
    stage: int = 0,
    folder: str | Path | None = None,
    top: int = 10,
    batch_size: int = 32,
    title: str | None = None,
) -> Scores:
    """How much each document raised each answer: the multi-stage influence function.

    stages: from the first to the one that ends in the model that is asked. questions:
    `stages[-1].model.answers(…)`, or prompts, or (prompt, answer) pairs; where there is no answer,
    the model's own greedy one is traced. documents: sequences of `stages[stage].model`, for
    stage = 0 pre-training documents, for stage = 1 fine-tuning rows; of a stage of preferences its
    pairs, in memory alone. folder: a working folder;
    scores are then written in blocks to folder/scores-…, named by all they depend on. top: how many
    documents a question the table and the explorer show. title: of the progress (None: silent).

    A score is df/dw = ⟨w, ∇ℓ_z(θ_j)⟩, f the answer's log-probability at the last model, in nats
    per unit of document weight; −score / N estimates f without the document minus f with it
    (`core.influence`; Bao et al. 2025, arXiv 2505.05017). Raises ValueError for stages that make no
    chain, a later stage without α, a singular curvature without damping, and sequences that the
    model cannot read; MemoryError or OSError where memory or disk will not do. Warns where an
    estimate is too large to be taken at its word.

    >>> stages = [msif.Stage(base, msif.fit(base, docs), damping=0.1),
    ...           msif.Stage(tuned, msif.fit(tuned, rows), alpha=0.1)]
    >>> scores = msif.trace(stages, ["Where was Ada born?"], docs, folder="work")
    >>> print(scores)  # doctest: +ELLIPSIS
    Where was Ada born? → ...
    """
    stages, top = _stages(stages), checks.whole("top", top)
    batch_size = checks.whole("batch_size", batch_size)
    _check_chain(stages)
    stage = _number(stages, stage)
    if isinstance(documents, data.Sequence | str):
        raise ValueError(
            f"documents are a {type(documents).__name__}: expected a list, as `Model.documents` "
            f"makes it, or `Model.stream`"
        )
    asked = _asked(stages[-1].model, questions)
    documents = list(documents) if isinstance(documents, list) else documents
    if of_pairs(stages[stage].factors) and not pairs.are_pairs(documents):
        raise ValueError(
            f"rows or documents for stage {stage}, which was fitted on preferences: expected a "
            f"list of its pairs, as `Model.preferences` makes it"
        )
    if folder is not None and pairs.are_pairs(documents):
        raise ValueError("pairs are scored in memory: leave out the folder")
    chain, model = chained(stages), stages[stage].model

    def vectors():
        last = stages[-1].model.tracked
        if all(map(queries.is_plain, chain)):
            options: dict[str, Any] = {"stage": stage, "batch_size": batch_size}
            return queries.preconditioned(last, asked, chain, **options)
        gradients = influence.query_gradients(last, asked, batch_size=batch_size)
        w = influence.precondition(gradients, chain)[stage]
        return {name: x.mT.contiguous().mT for name, x in w.items()}  # as `influence.score` reads

    found: influence.Scores | Path
    options: dict[str, Any]
    if folder is None:
        documents, w = list(documents), vectors()
        options = {"batch_size": batch_size, "title": title}
        if pairs.are_pairs(documents):
            options["objective"] = loss_of_pairs(stages, stage, documents, batch_size)
        found = influence.score(model.tracked, documents, w, **options)
        largest = found.values.abs().max().item()
    else:
        keys = [_stage_key(x, core) for x, core in zip(stages, chain)]
        name = {"stages": keys, "stage": stage}
        name |= {"questions": data.digest(asked), "documents": _source(documents)}
        found = Path(folder) / f"scores-{name_of(name)}"
        kept = found / "w.safetensors"
        lost = (found / "work.json").exists() and not kept.exists()
        w = _kept(kept, vectors)
        options = {"batch_size": batch_size, "top": 1, "title": title}
        try:
            best = streaming.score_corpus(model.tracked, documents, w, found, **options)
        except ValueError as error:
            if lost and ": w differ " in str(error):
                kept.unlink()
                raise ValueError(
                    f"{kept} is missing, and what was computed in its place differs in the last "
                    f"digits (another batch size, or another machine): put it back, or remove "
                    f"{found}"
                ) from error
            raise
        ends = best.proponent_values, best.opponent_values
        largest = max(x.abs().max().item() for x in ends)
    _doubt(largest, stages[stage].factors.header["sequences"])
    return Scores(stages, asked, cast(list, documents), stage, w, found, top)


def chained(stages: Sequence[Stage]) -> list[influence.Stage]:
    """The stages as `core.influence` has them, each with the layers that it left as they were: what
    a stage did not train passes it whole."""
    found = [x.core for x in stages]
    for k, (earlier, later) in enumerate(zip(stages, stages[1:]), 1):
        same = earlier.factors.header["model"] == later.factors.header["model"]  # warned of
        if not same and (frozen := later.frozen_since(earlier.model)):
            found[k] = replace(found[k], frozen=frozen)
    return found


def _stage_key(stage, core):
    header = {k: v for k, v in stage.factors.header.items() if k != "versions"}
    numbers = [[x.value, x.relative] for x in (core.damping, core.alpha)]
    found = {"factors": header, "layers": layers_key(stage.model), "numbers": [*numbers, stage.new]}
    if core.frozen:
        found["frozen"] = core.frozen
    if adapters := stage.model.adapters:  # the same sum of weights can come of others
        found["adapters"] = [adapters_digest(adapters), stage.core.decay, bool(stage.remainder)]
    return found


def _source(documents):
    """What tells documents apart; a stream's contents are checked block by block as it is read."""
    if isinstance(documents, Stream):
        texts = documents.texts
        source = str(texts) if isinstance(texts, str | Path) else files.sha256_of(list(texts))
        return [source, documents.column, documents.max_length, documents.limit]
    if not isinstance(documents, list):
        raise ValueError(
            f"documents are a {type(documents).__name__}: expected a list of sequences, or "
            f"`Model.stream`"
        )
    return data.digest(documents)


def _kept(path: Path, make: Callable[[], Vectors]) -> Vectors:
    """The vectors of a file, by one process made for all: the same bits in every process and run.

    They lie transposed, as `influence.score` reads them, and each at the start of its own memory:
    products of numbers that lie otherwise can differ in the last bit.
    """
    if not path.exists() and processes.rank_and_size()[0] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(path, {name: x.mT for name, x in make().items()}, scores=path.parent.name)
    processes.barrier()
    found, _ = files.load(path, scores=path.parent.name)
    return {name: x.clone().mT for name, x in found.items()}


def _stages(stages: Any) -> tuple[Stage, ...]:
    found = tuple(stages) if isinstance(stages, Iterable) else (stages,)
    if wrong := [x for x in found if not isinstance(x, Stage)]:
        raise ValueError(
            f"a stage is a {type(wrong[0]).__name__} of {type(wrong[0]).__module__}: expected a "
            f"list of msif.Stage, from pre-training to the model that is asked"
        )
    return found


def _asked(model, questions):
    """Sequences of the questions, which may be prompts or (prompt, answer) pairs."""
    one = isinstance(questions, str)
    if isinstance(questions, tuple) and list(map(type, questions)) == [str, str]:
        raise ValueError(
            f"questions are {questions!r}: expected [(prompt, answer)] for one question with its "
            f"answer, or [prompt, prompt] for two"
        )
    given = [questions] if one else list(checks.several("question", questions))
    if not given:
        raise ValueError("there are no questions: expected at least one")
    if all(isinstance(x, data.Sequence) for x in given):
        if any(isinstance(x.labels, int) for x in given):
            raise ValueError(
                "questions with a class as label: expected answers of a language model; a "
                "classifier's scores are msif.core's"
            )
        if len({x.index for x in given}) < len(given):  # of several calls, each from 0
            given = [replace(x, index=n) for n, x in enumerate(given)]
        return given
    return model.questions(given)


def _number(stages, stage):
    """The number of a stage, as an int."""
    with suppress(ValueError):
        if (number := checks.whole("stage", stage, 0)) < len(stages):
            return number
    raise ValueError(f"stage is {stage!r}: expected 0 to {len(stages) - 1}")


def _check_chain(stages):
    influence.check([x.core for x in stages])
    for x in stages:
        x.check_model()
    for k, (earlier, later) in enumerate(zip(stages, stages[1:]), 2):
        before = {x.name: (x.out_features, x.inputs) for x in earlier.model.tracked.layers}
        for x in later.model.tracked.layers:
            if before.get(x.name, (x.out_features, x.inputs)) != (x.out_features, x.inputs):
                raise ValueError(
                    f"{x.name} is {before[x.name]} in stage {k - 1} and "
                    f"{(x.out_features, x.inputs)} in stage {k} (outputs, inputs with the bias): "
                    f"is {later.model.source} fine-tuned from {earlier.model.source}?"
                )
        began = later.factors.header.get("start", earlier.factors.header["model"])
        if began != earlier.factors.header["model"]:
            raise ValueError(
                f"the preferences of stage {k} were fitted with another start than "
                f"{earlier.model.source}, in which stage {k - 1} ends: expected start= of that one"
            )
        if later.model.adapters and foreign(earlier.model, later.model):
            warnings.warn(
                f"the adapters of {later.model.source} are not on the weights of "
                f"{earlier.model.source}: is it the model that they were trained on, or is a stage "
                f"between them missing?",
                stacklevel=3,
            )
        if earlier.factors.header["model"] == later.factors.header["model"]:
            warnings.warn(
                f"stages {k - 1} and {k} end in models with equal weights "
                f"({earlier.model.source}, {later.model.source}): nothing was fine-tuned",
                stacklevel=3,
            )


def _doubt(largest, sequences):
    if (nats := largest / sequences) > DOUBTFUL:
        warnings.warn(
            f"the largest score says that one document of {sequences} changes an answer by "
            f"{nats:,.0f} nats: too much to be taken at its word. The curvature is hardly known in "
            f"such directions: fit it on more sequences, or give more damping or α. Ranks may "
            f"still do",
            stacklevel=3,
        )
