"""Multi-stage influence functions with EK-FAC (Bao et al. 2025, arXiv 2505.05017).

`core` is the engine; `curvature`, `scale`, `rivals` and `show` stand on it, and `study` on all of
them: it computes what the notebooks of this study show.
"""
