"""What would make scores wrong is found in models that nobody has seen, and refused by name."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.faulty import Model, rows
from torch import nn

from msif.core.capture import gradients
from msif.core.layers import tracked
from msif.core.objectives import loss


class TimeFirst(Model):
    def blocks(self, x, mask):
        return super().blocks(x.transpose(0, 1), mask).transpose(0, 1)


class TimeFirstInOneRow(Model):
    def blocks(self, x, mask):
        n, s, d = x.shape
        y = super().blocks(x.transpose(0, 1).reshape(s * n, d), mask)
        return y.view(s, n, d).transpose(0, 1)


class Reordered(Model):
    def blocks(self, x, mask):
        flat = x.flatten(0, 1)
        order = flat[:, 0].argsort()
        return super().blocks(flat[order], mask)[order.argsort()].view(x.shape)


class Table(Model):
    def blocks(self, x, mask):
        table = self.emb.weight[:3]  # as many as sequences
        return x + self.layers[0](x) + self.layers[1](table).sum(0)


class WithoutItsModule(Model):
    def block(self, layer, x, mask):
        earlier = F.pad(x[:, :-1], (0, 0, 1, 0))
        return layer(x).tanh() + F.linear(earlier, layer.weight)


class NotLinear(Model):
    def __init__(self):
        super().__init__()

        class Tripled(nn.Linear):
            def forward(self, x):
                return 3 * super().forward(x)

        self.layers[1] = Tripled(6, 6).double()


class Never(Model):
    def blocks(self, x, mask):
        return self.layers[0](x)


class Detached(Model):
    def blocks(self, x, mask):
        return self.layers[0](x) + self.layers[1](x).detach()


class Conditional(Model):
    def read(self, ids):
        self.chosen = bool((ids == 9).any())
        return self.emb(ids)

    def blocks(self, x, mask):
        x = self.layers[0](x).tanh()
        return x + self.layers[1](x) if self.chosen else x


class Bidirectional(Model):
    def block(self, layer, x, mask):
        m = mask[..., None].to(x)
        return (layer(x) + (x * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)).tanh()


class Remembers(Model):
    longest = 0

    def read(self, ids):
        self.longest = max(self.longest, ids.shape[1])
        return self.emb(ids) * (1 + 0.1 * self.longest)


class Sorted(Model):
    """As what is packed by length, or grouped by what it says."""

    def key(self, ids, mask):
        return mask.sum(1)

    def forward(self, input_ids, attention_mask):
        order = self.key(input_ids, attention_mask).argsort(stable=True)
        z = super().forward(input_ids[order], attention_mask[order]).logits
        return SimpleNamespace(logits=z[order.argsort()])


class SortedDown(Sorted):
    def key(self, ids, mask):
        return -mask.sum(1)


class SortedByContent(Sorted):
    def key(self, ids, mask):
        return ids[:, 0]


class ShiftsItself(Model):
    def read(self, ids):
        return self.emb(F.pad(ids[:, :-1], (1, 0)))


class DrawsRarely(Model):
    def block(self, layer, x, mask):
        return layer(x).tanh() * (2.0 if torch.rand(()) < 1e-6 else 1.0)


class SeesFarAhead(Model):
    """A position sees the twentieth after it."""

    def blocks(self, x, mask):
        x = super().blocks(x, mask)
        return x + F.pad(x[:, 20:], (0, 0, 0, min(20, x.shape[1])))


@pytest.mark.parametrize(
    "fault, message",
    [
        (TimeFirst, "not one row per sequence or position"),
        (TimeFirstInOneRow, "not autograd's"),
        (Reordered, "not autograd's"),
        (Table, "gradient of layers.1 is not autograd's.*pattern="),
        (WithoutItsModule, "not autograd's"),
        (NotLinear, "gradient of layers.1 is not autograd's"),
        (Never, "layers.1 did not run.*for instance pattern="),
        (Detached, "no gradient reaches layers.1"),
        (Conditional, "layers.1 did not run"),
        (Bidirectional, "not causal"),
        (Remembers, "reads the same sequence again"),
        (Sorted, "not autograd's"),
        (SortedDown, "not autograd's"),
        (SortedByContent, "not autograd's"),
        (ShiftsItself, "shifts its input by one itself"),
        (DrawsRarely, "draws of torch's random numbers"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_planted_fault_is_refused_by_name(fault, message):
    with pytest.raises(ValueError, match=message):
        gradients(tracked(fault()), rows(), loss, 8)


def test_a_later_token_beyond_the_short_pieces_is_seen():
    seen = tracked(SeesFarAhead())
    gradients(seen, rows(), loss, 8)  # whose longest has 12
    for net in (seen, tracked(SeesFarAhead())):
        with pytest.raises(ValueError, match="not causal"):
            gradients(net, rows((9, 30)), loss, 8)


class NoneWhenShort(Bidirectional):
    def read(self, ids):
        return self.emb(ids) * (torch.nan if ids.shape[1] < 20 else 1.0)


def test_a_model_whose_short_pieces_are_nan_is_refused_not_passed_by():
    with pytest.raises(ValueError, match="NaN for pieces of 12 tokens"):
        gradients(tracked(NoneWhenShort()), rows((24, 25, 30)), loss, 8)
