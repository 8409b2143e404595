"""Multi-stage influence functions with EK-FAC (Bao et al. 2025, arXiv 2505.05017): which
pre-training documents made a fine-tuned model say so?

Ten names, loaded when they are asked for, are the road from two checkpoints to a table of
documents; `msif.api` has them. `core` is the engine; `curvature`, `scale`, `rivals` and `view`
stand on it, and `study` on all of them: it computes what the notebooks of this study show.
"""

from importlib import import_module

__all__ = [  # noqa: F822  # found in msif.api
    "load",
    "Model",
    "fit",
    "load_factors",
    "Stage",
    "Damping",
    "trace",
    "Scores",
    "plan",
    "show",
]


def __getattr__(name):
    if name in __all__:
        return getattr(import_module("msif.api"), name)
    raise AttributeError(f"module 'msif' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
