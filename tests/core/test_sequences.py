"""A sequence is of whole numbers, and what a model cannot read is refused by name."""

import numpy as np
import pytest
import torch

from msif.core.data import digest
from msif.core.sequences import NO_LOSS, Sequence, check, distinct


def test_numbers_of_numpy_and_torch_become_pythons_and_what_is_no_whole_number_is_refused():
    plain = Sequence(3, (1, 2), (1, 2))
    for of in (np.array, torch.tensor, list):
        assert Sequence(np.int64(3), of([1, 2]), of([1, 2])) == plain
    assert Sequence(0, (np.int32(1), 2), np.int64(1)) == Sequence(0, (1, 2), 1)
    assert Sequence(0, (1, 2), torch.tensor(1)) == Sequence(0, (1, 2), 1)
    digest([Sequence(0, np.array([1, 2]), np.int64(1))])
    for wrong in (1.5, True, None, "1"):
        with pytest.raises(ValueError, match="sequence 0: its class is .*whole number"):
            Sequence(0, (1, 2), wrong)
    with pytest.raises(ValueError, match="sequence 0: an id or label is 1.5"):
        Sequence(0, (1, 1.5), (1, 2))


def test_sequences_that_share_an_index_are_refused():
    one = Sequence(4, (1, 2), (1, 2))
    distinct([one, Sequence(5, (1, 2), (1, 2))])
    for refuse in (distinct, lambda few: check(few, 9, 9)):
        with pytest.raises(ValueError, match="1 sequences share their index .*such as index 4"):
            refuse([one, one])


def test_check_names_the_sequence_and_the_value():
    good = Sequence(0, (1, 2, 3), (NO_LOSS, 2, 3))
    check([good, Sequence(1, (1, 2), 0)], vocab_size=4, context=3)
    for bad, message in {
        Sequence(7, (1, 4), (1, 2)): "sequence 7 has token id 4; the model's vocabulary has 4",
        Sequence(7, (1, 2), (1, -1)): "sequence 7 has token id -1",
        Sequence(7, (1, 2, 3, 1), (1, 2, 3, 1)): "sequence 7 has 4 tokens; expected 1 to 3",
        Sequence(7, (), ()): "sequence 7 has 0 tokens",
        Sequence(7, (1, 2), (1,)): "sequence 7 has 1 labels for 2 tokens",
        Sequence(7, (1, 2), NO_LOSS): "sequence 7 has the class -100; expected one from 0",
        Sequence(7, (1, NO_LOSS), (1, 2)): "sequence 7 has token id -100",
        Sequence(7, (1, 2), (1, NO_LOSS)): "sequence 7 has no label to predict",
    }.items():
        with pytest.raises(ValueError, match=message):
            check([good, bad], vocab_size=4, context=3)
    with pytest.raises(ValueError, match="no sequences"):
        check([], vocab_size=4, context=3)
    for none in ("ab", iter([good]), ["a"], [(1, 2)], [[good]]):
        with pytest.raises(ValueError, match="expected a list of data.S|expected a data.Sequence"):
            check(none, vocab_size=4, context=3)


def test_a_class_that_the_head_does_not_have_is_named():
    with pytest.raises(
        ValueError, match="sequence 4 has the class 3; expected one from 0, below 3"
    ):
        check([Sequence(4, (1, 2), 3)], 9, 9, 3)
    check([Sequence(4, (1, 2), 3)], 9, 9)
