"""A stage of training: its model, its curvature, and how that is fitted and inverted."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from msif.api.kinds import Fitted, key_of, of_pairs, of_preferences, read_beside, with_mean
from msif.api.known import look_at_answers, look_at_pairs
from msif.api.lineage import same_weights
from msif.api.models import Model
from msif.core import checks, data, ekfac, files, influence, pairs, preferences, store
from msif.core.influence import Damping
from msif.core.layers import refuse_without_gradients
from msif.core.model_digest import model_digest
from msif.core.models import limits
from msif.core.objectives import loss
from msif.curvature.lora import LoRA
from msif.scale import fitting


@dataclass(frozen=True, eq=False, repr=False)
class Stage:
    """One stage of training: the model that ended it, its curvature, and how it is inverted.

    factors: of this very model (`fit`). damping d: numerical; alpha α: how firmly the stage held on
    to its start, > 0 for all stages but the first. Both are added to the curvature's eigenvalues: a
    number is relative to each layer's mean eigenvalue, `Damping(x, relative=False)` absolute. new:
    names of layers that the stage before lacks. Of adapters (LoRA), what holds on is B and A: α is
    relative to their own curvature, and not needed where training went to its optimum. decay: the
    weight decay that they were trained with, of the mean loss. remainder: count also how their
    product bends the loss, which is right near an optimum (`curvature.lora`).

    Raises ValueError for factors of another model or other layers, for those that have lost what
    their stage needs besides (a mean gradient, a cross term), and for a negative number.

    >>> stage = msif.Stage(base, factors, damping=1e-3)
    """

    model: Model
    factors: ekfac.EKFAC
    damping: float | Damping = 0.0
    alpha: float | Damping = 0.0
    new: tuple[str, ...] = ()
    decay: float = 0.0
    remainder: bool = False

    def __post_init__(self):
        if not isinstance(self.model, Model) or not isinstance(self.factors, ekfac.EKFAC):
            raise ValueError(
                f"a stage of {reprlib.repr(self.model)} and {reprlib.repr(self.factors)}: expected "
                f"a model, as `load` gives it, and its factors, as `fit` or `load_factors` do"
            )
        source, digest = self.model.source, model_digest(self.model.tracked.model)
        what = f"the factors and the tracked layers of {source}"
        influence.same_layers(self.factors.layers, self.model.tracked.names, what)
        if self.factors.header["model"] != digest:
            raise ValueError(
                f"these factors were fitted on a model with digest "
                f"{self.factors.header['model'][:12]}…, {source} has {digest[:12]}…: fit them on "
                f"the stage's own model"
            )
        found = self.factors.factors
        for layer in self.model.tracked.layers:
            on_disk = isinstance(found, store.LayerFiles)
            rows = found.rows(layer.name) if on_disk else found[layer.name].rows
            if (rows is None) != (layer.rows is None) or not (
                rows is None or torch.equal(rows, layer.rows)
            ):
                raise ValueError(
                    f"{layer.name}: these factors were fitted with another per_head setting than "
                    f"{source} was loaded with; fit them again"
                )
        self.core  # noqa: B018  # a bad damping is refused here

    def __repr__(self) -> str:
        numbers = f"damping={self.damping!r}, alpha={self.alpha!r}"
        return f"<stage that ends in {self.model.source}; {numbers}>"

    def check_model(self) -> None:
        """Raise ValueError if the model is no longer the one that the factors were fitted on."""
        if model_digest(self.model.tracked.model) != self.factors.header["model"]:
            raise ValueError(
                f"the weights of {self.model.source} have changed since its stage was made, or a "
                f"number that it keeps (a count of what it reads belongs under a name that begins "
                f"with _): factors and scores are of the model before; fit them again"
            )

    def frozen_since(self, before: Model) -> tuple[str, ...]:
        """Names of the tracked layers whose weights are those of the model before, or these rounded
        to the fewer bits that they were saved in: the stage left them as they were. () of adapters,
        which say themselves what they move."""
        if self.model.adapters:
            return ()
        earlier, own = before.tracked, self.model.tracked
        both = set(earlier.names)
        return tuple(
            layer.name
            for layer in own.layers
            if layer.name in both and _kept(*(_weights(x.model, layer) for x in (earlier, own)))
        )

    @property
    def core(self) -> influence.Stage:
        """The stage as `core.influence` has it, whatever came before."""
        more = self.factors if isinstance(self.factors, Fitted) else Fitted({}, {})
        if of_pairs(self.factors) and not more.cross:
            raise ValueError(
                f"the factors of {self.model.source} were fitted on preferences, and their cross "
                f"term is not with them: expected factors as `msif.fit` gives them, or as "
                f"`msif.load_factors` reads them where it left them (`core.store` keeps the "
                f"curvature alone)"
            )
        plain = influence.Stage(
            self.factors, _damping(self.damping), _damping(self.alpha), self.new, more.coupling
        )
        if self.new and self.model.adapters:
            raise ValueError(f"new is {self.new}, and the model has adapters: expected none")
        if not self.model.adapters:
            if self.decay or self.remainder:
                raise ValueError(
                    f"decay and remainder are for adapters, and {self.model.source} has none"
                )
            return plain
        if not more.mean:
            raise ValueError(
                f"{self.model.source} has adapters: expected factors that `msif.fit` has fitted on "
                f"it, with their mean gradient"
            )
        return LoRA(
            plain.curvature,
            plain.damping,
            plain.alpha,
            cross=plain.cross,
            adapters=self.model.adapters,
            mean=more.mean,
            decay=self.decay,
            remainder=self.remainder,
        )


def a_model(x: object) -> Model:
    """The model; ValueError for anything else."""
    if not isinstance(x, Model):
        raise ValueError(
            f"the model is a {type(x).__name__}: expected a msif.Model, as `msif.load` gives it"
        )
    return x


def _weights(model, layer):
    """Weight and bias of a layer; of an expert its part of those that hold all."""
    found = model.get_submodule(layer.module).parameters(recurse=False)
    return [p.detach() if layer.expert is None else p.detach()[layer.expert] for p in found]


def _kept(before, after):
    return len(before) == len(after) and all(map(same_weights, before, after))


def _damping(value):
    return value if isinstance(value, Damping) else Damping(value)


def fit(
    model: Model,
    sequences: list[data.Sequence] | list[pairs.Pair],
    *,
    start: Model | None = None,
    b: float = 0.1,
    folder: str | Path | None = None,
    memory: int | str | None = None,
    labels: str = "gaussian",
    samples: int = 2,
    seed: int | str = 0,
    batch_size: int = 32,
    keep: int | str = 0,
    title: str | None = None,
) -> ekfac.EKFAC:
    """The EK-FAC factors of a stage: the Gauss-Newton matrix of the model that ends it, on the
    stage's own data (`core.ekfac.fit`, `scale.fitting.fit`; Grosse et al. 2023).

    sequences: `model.documents` of pre-training, `model.answers` of fine-tuning, or
    `model.preferences` of DPO, which also takes `start`, the model that it began with and was its
    reference, and its `b` (trl's beta; `core.preferences`). labels, samples, seed: the
    pseudo-gradients, so many a sequence; preferences have none, and are fitted in memory. folder: a
    working folder; the factors go to folder/factors-…, named by all they depend on, are found
    again, and are read layer by layer. memory: then decides in how many partitions the layers are
    fitted. keep: bytes of disk, or "16GiB", that may hold what the first pass saw, to save the
    second. title: of the plan and the progress bars (None: silent).

    Raises ValueError for sequences that the model cannot read, and for a model that autograd gives
    no gradients of (`layers.refuse_without_gradients`); MemoryError or OSError where memory or disk
    will not do, `files.Busy` while another run writes there. Warns where the model gives less than
    half of the answers' tokens itself: it was then hardly fine-tuned on these rows.

    >>> factors = msif.fit(base, docs)
    >>> sorted(factors.layers) == sorted(base.tracked.names)
    True
    >>> again = msif.fit(base, docs, folder="work")  # the same call, on disk
    """
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"folder is {str(folder)!r}, a file: expected a folder, or a new name")
    refuse_without_gradients(a_model(model).tracked)
    batch_size, samples = checks.whole("batch_size", batch_size), checks.whole("samples", samples)
    seed = checks.seed(seed)
    if pairs.are_pairs(sequences):
        if memory is not None or keep:
            raise ValueError(
                f"memory is {memory!r}, keep {keep!r}, and preferences are fitted in memory, all "
                f"layers at once: leave both out"
            )
        return _fit_preferences(model, sequences, start, b, folder, batch_size, title)
    if start is not None:
        raise ValueError("start is given with sequences: only pairs have a reference model")
    sequences = cast(list[data.Sequence], sequences)
    data.check(sequences, *limits(model.tracked.model))
    look_at_answers(model, sequences)
    options: dict[str, Any] = {
        "labels": labels,
        "samples": samples,
        "seed": seed,
        "batch_size": batch_size,
    }
    besides: dict[str, Any] = {"batch_size": batch_size, "title": title}
    if folder is None:
        found = ekfac.fit(model.tracked, sequences, title=title, **options)
        return _with_mean(model, found, sequences, None, besides)
    key = {"layers": layers_key(model), "model": model_digest(model.tracked.model), **options}
    key |= key_of(model.adapters)
    place = Path(folder) / f"factors-{name_of({**key, 'data': data.digest(sequences)})}"
    more: dict[str, Any] = {"memory": memory, "keep": keep, "title": title}
    found = fitting.fit(place, model.tracked, sequences, **options, **more)
    return _with_mean(model, found, sequences, place, besides)


def _with_mean(model, factors, rows, place, options, objective=loss):
    if not model.adapters:
        return factors
    if options["title"]:
        options = {**options, "title": f"{options['title']}: mean gradient"}
    return with_mean(factors, model.tracked, model.adapters, rows, place, options, objective)


def _fit_preferences(model, items, start, b, folder, batch_size, title):
    if start is None:
        raise ValueError("pairs without start: expected the model that DPO began with (start=…)")
    refuse_without_gradients(a_model(start).tracked)
    place, b = None, preferences.DPO(b, {}).b
    if folder is not None:
        key = {"layers": layers_key(model), "b": b, "data": pairs.digest(items)}
        key |= {x: model_digest(y.tracked.model) for x, y in (("model", model), ("start", start))}
        key |= key_of(model.adapters)
        place = Path(folder) / f"factors-{name_of(key)}"
    options = {"batch_size": batch_size, "title": title}
    found = of_preferences(model.tracked, start.tracked, items, b, place, options)
    objective = preferences.against(start.tracked.model, items, b, batch_size)
    look_at_pairs(model, items, objective, batch_size)
    return _with_mean(model, found, items, place, options, objective)


def loss_of_pairs(
    stages: Sequence[Stage], stage: int, items: list[pairs.Pair], batch_size: int = 32
) -> preferences.DPO:
    """The loss that pairs of a stage are scored by: against the model of the stage before."""
    b = stages[stage].factors.header.get("b")
    if b is None or not stage:
        raise ValueError(
            f"pairs for stage {stage}: expected a later stage that was fitted on preferences"
        )
    start = stages[stage - 1].model.tracked.model
    return preferences.against(start, items, b, batch_size)


def load_factors(folder: str | Path, model: Model) -> ekfac.EKFAC:
    """Factors that `fit` left in a folder, each layer read when it is asked for.

    folder: of the factors themselves, or the working folder, if it has one set of this model's.
    Raises `store.FactorsError` for damaged files, factors of another model or other layers, none,
    or several, and for preferences whose cross term does not lie beside them.

    >>> factors = msif.load_factors("work", base)
    """
    folder = Path(folder).resolve()  # what lies beside it goes by its own name, which "." is not
    if not (folder / "header.json").exists():
        there = sorted(path.parent for path in folder.glob("factors-*/header.json"))
        digest = model_digest(model.tracked.model)
        mine = [path for path in there if store.read_header(path)["model"] == digest]
        if len(mine) != 1:
            found = ", ".join(map(str, mine or there)) or "none"
            raise store.FactorsError(
                f"{folder}: expected one folder of factors of {model.source}; there are "
                f"{len(mine)} of it ({found}): name the one that you mean, or fit it"
            )
        folder = mine[0]
    return read_beside(store.load(folder, model.tracked, in_memory=False), folder)


def name_of(key: Any) -> str:
    """Twelve hex digits of all that a result depends on (JSON values)."""
    return files.sha256_of(key)[:12]


def layers_key(model: Model) -> list[Any]:
    """The tracked layers as JSON values."""
    return [
        [x.name, x.in_features, x.out_features, x.bias, None if x.rows is None else x.rows.tolist()]
        for x in model.tracked.layers
    ]
