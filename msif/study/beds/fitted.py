"""EK-FAC factors of the study's models, fitted once and kept in scratch/."""

from msif.core import ekfac, store
from msif.core.data import digest
from msif.core.model_digest import model_digest
from msif.study import scratch


def fitted(tracked, sequences, **settings):
    """(EKFAC, its folder): `ekfac.fit` with these settings, done once."""
    key = {
        "model": model_digest(tracked.model),
        "data": digest(sequences),
        "layers": [str(layer) for layer in tracked.layers],
        **settings,
    }

    def make(folder):
        store.save(ekfac.fit(tracked, sequences, title="factors", **settings), folder / "factors")

    folder = scratch.built("factors", key, make) / "factors"
    return store.load(folder, tracked), folder
