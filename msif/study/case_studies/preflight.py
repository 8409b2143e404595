"""What a profile with a pair of large models will download, write and take, and what is missing
here: before anything starts.

    python -m msif.study.case_studies.preflight dolly

prints a table; its exit code is 1, with what to do, where something is missing.

A profile of params.yaml has such a pair where one of its sections has a `pair` with `models`
(arguments of `pairs.prepared`), beside it `fit` (of `large.case`), `at_once`, `batch_size` and
further `questions`. Nothing is downloaded: shapes come from a model's config.json where it is on
this machine, else from shapes.SHAPES; the hub is asked what it has. Sizes follow from shapes; what
is marked "assumed" does not: rates, the length of documents.
"""

import argparse
import shutil
from dataclasses import dataclass

import torch

from msif.core.layers import tracked
from msif.core.resources import available_memory
from msif.scale.plan import model_bytes, plan_fit, plan_score
from msif.scale.sizes import human, parse_bytes
from msif.study import params, paths
from msif.study.case_studies import shapes
from msif.study.case_studies.available import (
    packages,
    paragraph_bytes,
    paragraphs_lacking,
    sources_here,
    writable,
)
from msif.study.corpora.neighbours import SEARCHES

LARGE = 3e8  # parameters from which a GPU is asked for
# Assumed mean bytes of a document, 4 a token: Wikipedia's and the Pile's are of this order.
DOCUMENT = 4000
ROWS = 15_011  # of databricks-dolly-15k
VECTOR = 4 * 384  # bytes of a passage's embedding, one to 1000 bytes of text


@dataclass(frozen=True)
class Rates:
    """Assumed operations per second of a device: of the model in bfloat16, of products in TF32 or
    float32, of float64 eigensolvers."""

    name: str
    model: float
    product: float
    eigh: float


DEVICES = (
    Rates("H200", 0.4 * 989e12, 0.5 * 494e12, 2e12),
    Rates("H100", 0.4 * 989e12, 0.5 * 494e12, 2e12),
    Rates("A100", 0.4 * 312e12, 0.5 * 156e12, 1e12),
    Rates("4090", 0.4 * 165e12, 0.5 * 82e12, 0.5e12),
)
CPU = Rates("CPU core", 2e10, 2e10, 5e9)


def preflight(bed, factors=None, scores=None):
    """(rows, missing): [(what, size or number, remark)] for `table`, and
    ["what is missing: do this"].

    bed, factors, scores: arguments of `pairs.prepared`, `large.case` and `large.scored`. No
    download, no model weights, and no clock."""
    factors, scores = factors or {}, scores or {}
    missing, dtype = [*packages(), *writable(bed["folder"])], bed.get("dtype", "bfloat16")
    models, data = bed["models"], ({"name": "rows", "limit": ROWS} | bed["rows"], *bed["corpora"])
    missing += paragraphs_lacking(bed["corpora"])
    wanted = [(x, "model") for x in models.values() if "source" in x]
    wanted += [(x, "dataset") for x in data if "paragraphs" not in x]
    sources = [(x["source"], x.get("revision") or "main", kind) for x, kind in wanted]
    found = sources_here(sources, missing)
    nets = shapes.outlines(models, dtype, missing)
    rows = [shapes.row(models[name], net, found) for name, net in nets.items()]
    rows += [_data(x, found) for x in data]
    rows.append(_queries(bed, scores))
    if all(nets.values()):
        rows += _plans(bed, nets, factors, scores, found, missing)
    return rows, missing


def table(rows):
    """Text, one row a line."""
    first, second = (max(len(str(row[k])) for row in rows) for k in (0, 1))
    return "\n".join(f"{str(a):<{first}}  {str(b):>{second}}  {c}".rstrip() for a, b, c in rows)


def _data(x, found):
    answer = found.get(x["source"])
    there = {"here": "in place", "downloaded": "known to the hub's cache"}
    local = "in place" if "paragraphs" in x else "streamed"
    where = there.get(answer, local) if isinstance(answer, str) else local
    how = "measured" if paragraph_bytes(x) else "assumed"
    size = f"about {human(x['limit'] * _bytes(x))} ({how} {_bytes(x)} bytes each)"
    return f"data {x['source']}", f"{x['limit']:,}", f"at most, {x['name']}; {where}; {size}"


def _bytes(corpus):
    """Of a document, in the mean."""
    return paragraph_bytes(corpus) or DOCUMENT


def _queries(bed, scores):
    asked = _asked_for(bed)
    return (
        "queries",
        f"{asked:,}",
        f"{-(-asked // scores.get('at_once', 4))} groups; candidates of each at most "
        f"{_candidates(bed):,} documents",
    )


def _asked_for(bed):
    samples = (bed.get("generation") or {}).get("samples", 0)
    return sum(1 if "answer" in x else 1 + samples for x in bed["questions"])


def _candidates(bed):
    """At most how many documents are one query's candidates."""
    search = bed.get("search") or {}
    found = search.get("first", 100) * len(_searches(bed))
    return found + search.get("random", 100)


def _searches(bed):
    return (bed.get("search") or {}).get("methods", SEARCHES)


def _plans(bed, nets, factors, scores, found, missing):
    """Rows of memory, disk, passes and hours."""
    device, total, rates, remark = _device(nets, missing)
    budget = parse_bytes(factors["memory"]) if factors.get("memory") else int(0.93 * total)
    counts = {
        "pretrained": bed["factor_documents"]["chunks"],
        "finetuned": bed["rows"].get("limit", ROWS),
    }
    wanted = factors.get("pattern"), factors.get("per_head", False)
    settings = {
        "batch_size": factors.get("batch_size", 32),
        "draws": factors.get("samples", 2),
        "memory": budget,
    }
    outlines = {name: tracked(net, *wanted) for name, net in nets.items()}
    rows, fits = [("device", device, remark)], {}
    for name, outline in outlines.items():
        lengths = [bed["max_length"]] * counts[name]
        try:
            plan = fits[name] = plan_fit(outline, lengths, **settings)
        except MemoryError as error:
            missing.append(f"memory: {error}")
            return rows
        partitions = len(plan.partitions)
        hours = _hours(plan.seconds(rates.model, rates.product, rates.eigh))
        remark = (
            f"{partitions} partitions, {2 * partitions} passes over at most {counts[name]:,} "
            f"sequences of {bed['max_length']}; peak memory {human(plan.peak)}; "
            f"factors {human(plan.factors)}"
        )
        rows.append((f"fit {name}", hours, remark))
    if made := bed["models"]["finetuned"].get("finetuning"):
        rows.append(_training(bed, nets["finetuned"], made["epochs"], counts["finetuned"], rates))
    peak = max(x.peak for x in fits.values())
    rows += _scoring(bed, outlines["pretrained"], scores, rates, total, peak, missing)
    return rows + _disk(bed, nets, fits, found, missing)


def _training(bed, net, epochs, count, rates):
    tokens = epochs * count * bed["max_length"]
    seconds = 6 * sum(p.numel() for p in net.parameters()) * tokens / rates.model
    remark = f"{epochs} epochs over at most {count:,} rows of {bed['max_length']}"
    return "fine-tune", _hours(seconds), remark


def _scoring(bed, outline, scores, rates, total, fit, missing):
    asked, at_once = _asked_for(bed), scores.get("at_once", 4)
    groups = -(-asked // at_once)
    documents = min(at_once * _candidates(bed), sum(x["limit"] for x in bed["corpora"]))
    longest = max(_bytes(x) for x in bed["corpora"])
    chunks = max(1, documents * -(-longest // (4 * bed["max_length"])))
    lengths, batch_size = [bed["max_length"]] * chunks, scores.get("batch_size", 8)
    plan = plan_score(outline, lengths, min(at_once, asked), batch_size=batch_size)
    scoring = plan.peak + model_bytes(outline.model)
    peak, what = max((scoring, "scoring, both models loaded"), (fit, "the fit"))
    if peak > total:
        missing.append(
            f"memory: {what} needs {human(peak)}, the device has {human(total)}; lower at_once, "
            "batch_size or factors.memory, or take a larger device"
        )
    return [
        (
            "score, for each setting",
            _hours(groups * plan.seconds(rates.model, rates.product)),
            f"{groups} passes over about {chunks:,} chunks (assumed {longest // 4:,} tokens a "
            f"document); peak memory {human(scoring)}",
        )
    ]


def _disk(bed, nets, fits, found, missing):
    here = paths.root()
    downloads = sum(shapes.disk(bed["models"][name], net, found) for name, net in nets.items())
    texts = sum(x["limit"] * _bytes(x) for x in bed["corpora"])
    vectors = texts // 1000 * VECTOR * ("embeddings" in _searches(bed))
    fitted = sum(x.factors for x in fits.values())
    total = downloads + texts + vectors + fitted + max(x.disk - x.factors for x in fits.values())
    free = shutil.disk_usage(here).free
    if total > free:
        missing.append(
            f"disk: {human(total)} at {here}, where {human(free)} is free; free some, or run in a "
            "checkout on a larger disk"
        )
    return [
        (
            "disk, at most",
            human(total),
            f"models {human(downloads)}, factors {human(fitted)} and as much again for a while, "
            f"documents {human(texts)}, embeddings {human(vectors)}; free {human(free)}",
        )
    ]


def _device(nets, missing):
    """(name, bytes of memory, Rates, remark)."""
    if torch.cuda.is_available():
        name, total = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        rates = next((x for x in DEVICES if x.name in name), DEVICES[-1])
        remark = f"{human(total)}; hours at the assumed rates of an {rates.name}"
        return name, total, rates, remark
    if max(sum(p.numel() for p in net.parameters()) for net in nets.values()) < LARGE:
        total = available_memory() or 2**33
        rate = f"{CPU.model:.0e} operations per second"
        return "CPU", total, CPU, f"{human(total)} free; hours at an assumed {rate}"
    missing.append(
        "a GPU: models of this size need one; run on a machine with an accelerator that torch sees "
        "(torch.cuda.is_available())"
    )
    remark = f"planned for an {DEVICES[0].name}, 131 GiB, at its assumed rates"
    return "none", 131 * 2**30, DEVICES[0], remark


def _hours(seconds):
    return f"{seconds / 3600:.2f} h"


def pair_of(profile):
    """Arguments of `preflight` for a profile of params.yaml; ValueError where there is no such
    profile, and where no section of it has a pair."""
    there = params.profiles()
    sections = there[params.known(profile, "profile", there)].values()
    found = [x for x in sections if "models" in (x.get("pair") or {})]
    if not found:
        raise ValueError(
            f"the profile {profile!r} has no section with a `pair` of `models`: nothing to prepare "
            "for"
        )
    return arguments(found[0])


def arguments(section):
    """Arguments of `preflight` for such a section: {"pair", "questions", "fit", "at_once",
    "batch_size"}."""
    pair, scores = section["pair"], {"at_once": section.get("at_once") or 1}
    if section.get("batch_size"):
        scores["batch_size"] = section["batch_size"]
    questions = [*pair["questions"], *(section.get("questions") or [])]
    bed = pair | {"questions": questions}
    return {"bed": bed, "factors": section.get("fit"), "scores": scores}


def main(arguments=None):
    """Exit code: 0 all is there, 1 something is missing, 2 no such profile."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", help="section of params.yaml")
    profile = parser.parse_args(arguments).profile
    try:
        rows, missing = preflight(**pair_of(profile))
    except ValueError as error:
        parser.exit(2, f"msif.study.case_studies.preflight: {error}\n")
    print(table(rows), *(f"missing: {x}" for x in missing), sep="\n")
    return int(bool(missing))


if __name__ == "__main__":
    raise SystemExit(main())
