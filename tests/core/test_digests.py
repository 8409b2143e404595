"""A function is known by what it computes, in any process, and by nothing else."""

import copy
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from msif.core import objectives
from msif.core.digests import function_digest, tensors_digest

SCALE = 2


def scaled(logits, batch, k=1):
    return k * SCALE * objectives.loss(logits, batch)


def holding(value):
    return lambda logits, batch: logits * value


class Called:
    sign = 1

    def __init__(self, k):
        self.k = k

    def __call__(self, logits, batch):
        return self.sign * self.k * logits

    def method(self, logits, batch):
        return self.k * logits


PAIRS = [
    (1, 2),
    (1, 1.0),
    (1, True),
    ("a", "b"),
    (torch.ones(2), torch.zeros(2)),
    ({"a": [torch.ones(2)]}, {"a": [torch.zeros(2)]}),
    ({"a", "b"}, {"a", "c"}),
    (SimpleNamespace(a=1), SimpleNamespace(a=2)),
    (torch.nn.CrossEntropyLoss(label_smoothing=0.1), torch.nn.CrossEntropyLoss()),
]


@pytest.mark.parametrize("one, other", PAIRS, ids=[type(x[0]).__name__ for x in PAIRS])
@pytest.mark.parametrize("make", [holding, lambda x: partial(scaled, k=x), Called])
def test_what_a_function_holds_is_part_of_it(make, one, other):
    same = function_digest(make(copy.deepcopy(one)))
    assert function_digest(make(one)) == same != function_digest(make(other))


def test_two_lambdas_are_two(monkeypatch):
    assert function_digest(lambda x, b: x) != function_digest(lambda x, b: -x)
    assert function_digest(lambda x, b: 2 * x) != function_digest(lambda x, b: 3 * x)
    assert function_digest(Called(1)) != function_digest(Called(1).method)
    before = [function_digest(x) for x in (scaled, Called(1))]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3)  # global values count
    monkeypatch.setattr(Called, "sign", -1)
    assert not set(before) & {function_digest(x) for x in (scaled, Called(1))}


def digests():
    values = scaled, holding({"a", "b", "c"}), Called(torch.ones(1)), Called(1).method
    return [function_digest(x) for x in (*values, partial(scaled, k=1.5), objectives.loss)]


def test_they_are_the_same_in_every_process():
    here = Path(__file__).parent
    code = f"import sys; sys.path[:] = {[str(here), *sys.path]}; import test_digests as t; "
    found = [
        subprocess.run(
            [sys.executable, "-c", code + "print(t.digests())"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    ]
    assert found[0] == found[1] and found[0].count("scaled") == 2


@pytest.mark.parametrize("value", [threading.Lock(), sys.stdout, (x for x in "ab")])
def test_what_is_another_one_in_each_run_is_refused(value):
    with pytest.raises(ValueError, match="<lambda> holds a .*cannot be told from another one"):
        function_digest(holding(value))


def test_tensors_are_known_by_names_dtypes_shapes_and_numbers():
    x = {"a": torch.arange(6.0)}
    others = {"b": x["a"]}, {"a": x["a"].view(2, 3)}, {"a": x["a"].double()}, {"a": x["a"] + 1}
    assert tensors_digest(x) not in [tensors_digest(other) for other in others]
    assert tensors_digest({"a": torch.empty(0, 3)}) != tensors_digest({"a": torch.empty(3, 0)})
