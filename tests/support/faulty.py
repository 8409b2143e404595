"""A small model in which a test plants one fault, and sequences that it reads."""

from types import SimpleNamespace

import torch
from torch import nn

from msif.core.data import Sequence


def rows(lengths=(4, 3, 9, 5, 12, 4, 9, 2), words=11):
    g = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(words, (n,), generator=g).tolist()) for n in lengths]
    return [Sequence(n, x, x) for n, x in enumerate(ids)]


class Model(nn.Module):
    """Residual layers; a fault is planted by overriding a part."""

    def __init__(self, words=11, d=6):
        super().__init__()
        torch.manual_seed(1)
        self.emb = nn.Embedding(words, d)
        self.layers = nn.ModuleList([nn.Linear(d, d), nn.Linear(d, d)])
        self.out = nn.Linear(d, words)
        self.double().eval()

    def read(self, ids):
        return self.emb(ids)

    def block(self, layer, x, mask):
        return layer(x).tanh()

    def blocks(self, x, mask):
        for layer in self.layers:
            x = x + self.block(layer, x, mask)
        return x

    def forward(self, input_ids, attention_mask):
        x = self.blocks(self.read(input_ids), attention_mask)
        return SimpleNamespace(logits=self.out(x))
