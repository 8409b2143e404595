"""Fits in folders: begun and cut, or finished."""

import pytest

from msif.core import ekfac
from msif.core.influence import Damping
from msif.core.layers import tracked
from msif.scale import fitting
from support.tiny import documents, neox, probe

DAMPING = Damping(0.1)
DATA, OTHERS = documents(14), documents(14, seed=8)


class Power(Exception):
    """It is cut."""


def begun(folder, data, stop, monkeypatch):
    """A fit that ends before it decomposes or saves, with all that it wrote until then."""
    with monkeypatch.context() as patch, pytest.raises(Power):

        def cut(*_, **__):
            raise Power

        patch.setattr(*stop, cut)
        fit(folder, data)
    return folder.with_name(f".{folder.name}.work")


def fit(folder, data=DATA):
    """Factors of a tiny model in a folder, by passes of which everything is kept."""
    return fitting.fit(folder, tracked(neox()), data, batch_size=4, every=0, keep="1MB")


def numbers(factors):
    """What scores see of the factors, `probe`."""
    return probe(ekfac.EKFAC(dict(factors.factors), factors.header))


# Where a fit may be cut: {what it has written until then: (module, function)}.
STOPS = {
    "sums and kept": (fitting.ekfac, "eigenbases"),
    "bases and kept": (fitting.ekfac, "mean_eigenvalues"),
    "factors": (fitting.store, "save"),
}
