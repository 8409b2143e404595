"""Records of notebook 3 as `pipeline.traced` reads them, made up."""

import json

MORE = {"mrr_se": 0.1, "queries": 10}


def record(method, mrr, seed=0, condition="plain", normalised=False, **more):
    found = {"method": method, "condition": condition, "seed": seed, "normalised": normalised}
    return {**MORE, **found, "mrr": mrr, **more}


def world(seed=0, single=0.5, multi=0.6, alone=0.55):
    """Records of one seed, with every column."""
    return [
        record("single_stage_finetuned", single, seed, normalised=True),
        record("multi_stage", multi, seed, normalised=True),
        record("multi_stage", 0.99, seed),
        record("pretraining_only", alone, seed, normalised=True),
        record("pretraining_only_trajectory", 0.65, seed, normalised=True),
        record("multi_stage_trajectory", 0.7, seed, normalised=True),
        record("trackstar", 0.5, seed),
        record("trackstar_trajectory", 0.65, seed),
        record("hidden_mean", 0.6, seed),
        record("bm25", 0.8, seed),
        record("tfidf", 0.9, seed),
    ]


def reports(folder, records, profile="full", low=-0.1, **metrics):
    gain = {"normalised": {"mean": 0.05, "low": low, "high": 0.2}}
    pairs = ("{} - pretraining_only{}", "_trajectory"), ("{} - pretraining_only{}", "")
    paired = {name.format(f"multi_stage{end}", end): gain for name, end in pairs}
    (folder / profile).mkdir(parents=True, exist_ok=True)
    (folder / profile / "fact_tracing.json").write_text(json.dumps(records))
    (folder / profile / "fact_tracing.metrics.json").write_text(json.dumps({"paired": paired}))
    for name, numbers in metrics.items():
        (folder / profile / f"{name}.metrics.json").write_text(json.dumps(numbers))
    return folder
