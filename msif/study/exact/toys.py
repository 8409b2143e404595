"""Toys small enough for dense curvature: a corpus of invented facts, and models that are
pre-trained and fine-tuned on it.

24 subjects × 2 relations, 5 objects each. Pre-training: 8 statements of each fact, of which a share
names a wrong object. Fine-tuning: 4 questions about each fact of the first half of the subjects,
with the loss on the answer. Queries: 2 questions about each fact of the other half, so that their
answers can come from pre-training alone.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from msif.core.data import NO_LOSS, Sequence
from msif.core.layers import Tracked, tracked_layers
from msif.core.models import tiny_gpt_neox
from msif.study.beds.training import train

SUBJECTS, RELATIONS, OBJECTS, VERBS, FILLERS = 24, 2, 5, 3, 6
# And two marks, of a question and of its answer.
VOCABULARY = SUBJECTS + RELATIONS * (OBJECTS + VERBS) + FILLERS + 2
QUESTION, ANSWER = VOCABULARY - 2, VOCABULARY - 1


@dataclass(frozen=True)
class Toy:
    """base: θ₁, tuned: θ₂, both in float64. layers: the tracked ones. documents, finetuning,
    queries: `data.Sequence`."""

    base: object
    tuned: object
    layers: list
    documents: list
    finetuning: list
    queries: list

    @property
    def tracked(self):
        """θ₁ and θ₂ with the tracked layers."""
        return [Tracked(model, self.layers) for model in (self.base, self.tuned)]


class WindowMLP(nn.Module):
    """Next-token logits from the fixed random codes of the last three tokens, by two hidden layers
    of `tanh`."""

    def __init__(self, vocabulary, code=8, width=16, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.register_buffer("table", torch.randn(vocabulary, code))
            sizes = [3 * code, width, width, vocabulary]
            self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:]))

    @property
    def device(self):
        """Where the weights are."""
        return self.table.device

    def forward(self, input_ids, attention_mask=None):
        """Logits (n, T, vocabulary) of input_ids (n, T), named as transformers names them."""
        codes = nn.functional.pad(self.table[input_ids], (0, 0, 2, 0))  # zeros before the start
        x = torch.cat([codes[:, 2:], codes[:, 1:-1], codes[:, :-2]], 2)
        for layer in self.layers[:-1]:
            x = layer(x).tanh()
        return SimpleNamespace(logits=self.layers[-1](x))


def corpus(seed=0, wrong=0.15):
    """(documents, fine-tuning rows, queries) as `data.Sequence`; wrong: the share of statements
    with another object."""
    g = torch.Generator().manual_seed(seed)

    def pick(n):
        return int(torch.randint(n, (), generator=g))

    def told(o):
        """The object that a statement names: o, or by the share `wrong` another one."""
        further = 1 + pick(OBJECTS - 1)
        return (o + further * (torch.rand((), generator=g) < wrong).item()) % OBJECTS

    facts = {(s, r): pick(OBJECTS) for s in range(SUBJECTS) for r in range(RELATIONS)}
    documents = [_statement(s, r, told(o), pick) for (s, r), o in facts.items() for _ in range(8)]
    asked = {
        half: [
            _question(s, r, o, pick)
            for (s, r), o in facts.items()
            if (s < SUBJECTS // 2) == half
            for _ in range(times)
        ]
        for half, times in ((True, 4), (False, 2))
    }
    return tuple(
        [Sequence(i, *row) for i, row in enumerate(rows)]
        for rows in (documents, asked[True], asked[False])
    )


def _verb(r, pick):
    return SUBJECTS + RELATIONS * OBJECTS + VERBS * r + pick(VERBS)


def _filler(pick):
    return VOCABULARY - 2 - FILLERS + pick(FILLERS)


def _statement(s, r, o, pick):
    thing = SUBJECTS + OBJECTS * r + o
    ids = (_filler(pick), s, _verb(r, pick), thing, _filler(pick), _filler(pick))
    return ids, ids


def _question(s, r, o, pick):
    answer = SUBJECTS + OBJECTS * r + o
    ids = (QUESTION, _filler(pick), _verb(r, pick), s, ANSWER, answer)
    return ids, (NO_LOSS,) * 5 + (answer,)


def transformer(seed=0):
    """A GPT-NeoX of width 12 with 2 layers."""
    return tiny_gpt_neox(
        VOCABULARY, width=12, layers=2, heads=2, context=8, intermediate=24, seed=seed
    )


def mlp(seed=0):
    """A `WindowMLP` of width 16."""
    return WindowMLP(VOCABULARY, seed=seed)


MODELS = {"transformer": transformer, "mlp": mlp}


def toy(model, seed=0, *, pretraining, finetuning, wrong=0.15):
    """A trained `Toy`. model: "transformer" or "mlp"; pretraining, finetuning: arguments of
    `training.train`."""
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(MODELS)}")
    documents, rows, queries = corpus(seed, wrong)
    base, tuned = MODELS[model](seed), MODELS[model](seed)
    train(base, documents, seed=seed, **pretraining)
    tuned.load_state_dict(base.state_dict())
    train(tuned, rows, seed=seed, **finetuning)
    base, tuned = base.double(), tuned.double()
    return Toy(base, tuned, tracked_layers(base, _pattern(model)), documents, rows, queries)


def _pattern(model):
    return r"^layers\." if model == "mlp" else None
