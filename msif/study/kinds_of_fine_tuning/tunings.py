"""Three fine-tunings of one pre-trained model.

    full        all weights, on the corpus's rows
    LoRA        adapters on the linear layers of the blocks, by PEFT, on the same rows
    LoRA, DPO   then all weights of the merged model, on pairs: the right answer was chosen, another
                object of the same relation rejected; the reference is the LoRA model

And `again`: full with another seed, the measure of what differs without another kind. Each is
trained by AdamW on the mean over a batch, batches drawn by seed.
"""

import math
import random
from copy import deepcopy
from dataclasses import dataclass

import torch

from msif.api.loading import load
from msif.core import adapters, data, pairs, preferences
from msif.core.data import collate
from msif.core.extras import need
from msif.core.model_digest import model_digest
from msif.core.models import logits
from msif.study import scratch
from msif.study.beds import testbed
from msif.study.beds.training import batches, train

FULL, LORA, DPO, AGAIN = "full", "LoRA", "LoRA, DPO", "full, again"
KINDS = (FULL, LORA, DPO)
FOLDERS = {FULL: "full", LORA: "lora", DPO: "dpo", AGAIN: "again"}
TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]  # of a GPT-NeoX
ANOTHER = 1000  # added to the seed of `again`


@dataclass(frozen=True)
class Tuned:
    """A pre-training and what was made of it.

    bed: a `testbed.Testbed`. base: its pre-trained model, ends: {kind: the model that it ends in},
    all `msif.Model`. pairs: of DPO.
    """

    bed: testbed.Testbed
    base: object
    ends: dict
    pairs: list

    def exact_match(self, kind=None):
        """The share of the held-out facts that the model gives; kind: None, before fine-tuning."""
        model = (self.ends[kind] if kind else self.base).tracked.model
        found = testbed.answers(model, self.bed.tokenizer, self.bed.corpus.queries)
        return sum(ok for _, ok in found) / len(found)

    def key(self):
        """What scores depend on, beside their settings."""
        models = {"base": self.base, **self.ends}
        return {
            "models": {name: model_digest(x.tracked.model) for name, x in models.items()},
            "documents": data.digest(self.bed.documents),
            "rows": data.digest(self.bed.finetuning),
            "pairs": pairs.digest(self.pairs),
        }


def rejected_answers(rows, others, seed):
    """For each row another object than its answer, drawn by seed from `others` {relation: …}."""
    rng = random.Random(seed)
    return [rng.choice([x for x in others[row["relation"]] if x != row["answer"]]) for row in rows]


def preference_pairs(corpus, tokenizer, max_length, seed=0):
    """The pairs of a corpus's fine-tuning rows: `pairs.Pair`, in their order."""
    rows, others = corpus.finetuning, {}
    for row in rows + corpus.queries:
        others.setdefault(row["relation"], {})[row["answer"]] = None  # in order, each once
    prompts = [row["prompt"] for row in rows]
    sides = [[row["answer"] for row in rows], rejected_answers(rows, others, seed)]
    encoded = (data.encode_answers(prompts, x, tokenizer, max_length) for x in sides)
    return pairs.paired(*encoded)


def with_adapters(base, rows, *, rank, scale, seed, weight_decay=0.0, **settings):
    """A `PeftModel` trained on rows; the base is left as it is. scale: s, of W + s·BA."""
    peft = need("peft")
    names = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    config = {"r": rank, "lora_alpha": rank * scale, "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            deepcopy(base),
            peft.LoraConfig(target_modules=[x for x in TARGETS if x in names], **config),
        )
    train(model, rows, seed=seed, weight_decay=weight_decay, **settings)
    return model


def by_preferences(start, items, *, b, epochs, rate, batch_size, seed, weight_decay=0.0):
    """The model that DPO makes of `start`, which is left as it is; a constant rate after a tenth of
    the steps, as in `training.train`."""
    loss = preferences.against(start, items, b)
    order = torch.Generator().manual_seed(seed)
    model = deepcopy(start).train().requires_grad_(True)  # PEFT has frozen all but its own
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    ramp = max(1, round(0.1 * epochs * math.ceil(len(items) / batch_size)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: min(1.0, (n + 1) / ramp))
    lengths = torch.zeros(len(items))
    for _ in range(epochs):
        for chosen in batches(lengths, batch_size, False, order):
            batch = collate(pairs.rows_of([items[i] for i in chosen]))
            optimiser.zero_grad()
            loss(logits(model, batch), batch).mean().backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def finetuned(base, rows, items, seed, settings, kinds=KINDS):
    """{kind: the network that it ends in}, LoRA's a `PeftModel`; the base is left as it is.

    rows, items: sequences and pairs. settings: {"full": arguments of `training.train`, "lora": of
    `with_adapters`, "dpo": of `by_preferences`}."""
    found = {}
    for kind in (FULL, AGAIN):
        if kind in kinds:
            found[kind] = deepcopy(base)
            train(found[kind], rows, seed=seed + ANOTHER * (kind == AGAIN), **settings["full"])
    if {LORA, DPO} & set(kinds):
        found[LORA] = with_adapters(base, rows, seed=seed, **settings["lora"])
    if DPO in kinds:
        start = merged(found[LORA])
        found[DPO] = by_preferences(start, items, seed=seed, **settings["dpo"])
    return found


def merged(model):
    """A `PeftModel` as one model with weights W + s·BA."""
    return adapters.merged(*adapters.taken_from(model))


def tuned(recipe, seed, settings):
    """The `Tuned` of a seed, trained on the whole corpus; kept in scratch/.

    recipe: `retraining.Recipe`, whose fine-tuning is that of `full`. settings: as for
    `finetuned`."""
    bed = testbed.trained(
        seed,
        recipe.corpus,
        recipe.model,
        settings["full"],
        pretraining=recipe.pretraining,
        checkpoints=[],
        max_length=recipe.max_length,
    )
    items = preference_pairs(recipe.corpus, bed.tokenizer, recipe.max_length)
    kinds = (*KINDS, AGAIN)

    def make(folder):
        nets = finetuned(bed.model("pretrained"), bed.finetuning, items, seed, settings, kinds)
        for kind, net in nets.items():
            net.save_pretrained(folder / FOLDERS[kind])

    first = bed.folder / "pretrained"
    key = {"pretrained": model_digest(bed.model("pretrained")), "pairs": pairs.digest(items)}
    key |= {"rows": data.digest(bed.finetuning), "seed": seed, "settings": settings}
    folder = scratch.built("kinds", key, make)
    options = {"tokenizer": bed.folder / "tokenizer", "device": "cpu"}
    ends = {
        kind: load(folder / name, base=first if kind == LORA else None, **options)
        for kind, name in FOLDERS.items()
    }
    return Tuned(bed, load(first, **options), ends, items)
