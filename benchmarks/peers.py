"""Cost of EK-FAC influence in msif and three other libraries: same model, data and machine,
one sitting, one thread, float32.

    .venv/bin/python benchmarks/peers.py                # all shapes, libraries (requirements.txt)
    .venv/bin/python benchmarks/peers.py --report-only  # table and figure from peers.json

Units. fit_ratio, score_ratio: CPU seconds of fitting EK-FAC, and of scoring all candidates for all
queries with those factors, divided by those of one plain forward and backward pass over the
training sequences (before and after in the same process, averaged). fit_mb, score_mb: growth of the
resident memory at the peak, in MB. Each library, shape and repetition is a process of its own,
libraries take turns within a repetition, and a record is the median of its repetitions, with the
least (_low) and the largest (_high).

Agreement. With the data's own labels nothing is random: scores of the other libraries are compared
with msif's in the same sitting (`correlation`: Pearson over all pairs; `error`: ‖S − S_msif‖ /
‖S_msif‖), at a damping of 0.1 × each layer's mean eigenvalue. kronfluence computes what msif does:
a correlation below 0.999 stops the run. bergson leaves the last position, which has no label, out
of the covariance of the inputs and hence finds a slightly different eigenbasis. curvlinops has one
damping for all layers and is not compared.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

import workload
from peers_report import MEASURED, NAMES, QUICK, SHAPES, figure, table
from workload import ROOT, Shape, read, spread, write

FIELDS = (
    "library",
    "version",
    "shape",
    "queries",
    "mode",
    *MEASURED,
    *(f"{x}_{end}" for x in MEASURED for end in ("low", "high")),
    "repetitions",
    "correlation",
    "error",
)
AGREE = 0.999


# -------------------------------------------------------------------------- in a process of its own


def measure(library, shape, seed):
    """One repetition: {mode: {fit_ratio, score_ratio, fit_mb, score_mb}}."""
    import torch
    from libraries import LIBRARIES

    model, data = workload.build_model(shape), workload.build_data(shape)

    def unit():
        return workload.cpu_seconds(lambda: workload.plain(model, data["train"], shape.batch))[0]

    workload.plain(model, data["train"][: 2 * shape.batch], shape.batch)
    # what a library does once in a process, such as late imports
    scores(library, QUICK["quick"], os.devnull)
    first, found = unit(), {}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        run = LIBRARIES[library](workload.build_model(shape), data, shape, folder, "sampled")
        fit_mb, (fit, _) = workload.memory_growth(lambda: workload.cpu_seconds(run.fit))
        for mode in run.modes:
            score_mb, (score, values) = workload.memory_growth(
                lambda: workload.cpu_seconds(lambda: run.score(mode))
            )
            _check(values, shape)
            found[mode] = {
                "fit_ratio": fit,
                "score_ratio": score,
                "fit_mb": fit_mb,
                "score_mb": score_mb,
            }
    plain = (first + unit()) / 2
    return {
        mode: {name: x / plain if name.endswith("ratio") else x for name, x in costs.items()}
        for mode, costs in found.items()
    }


def scores(library, shape, file):
    """Scores with the data's own labels, {mode: (queries, candidates)}, to a file."""
    import torch
    from libraries import LIBRARIES

    with tempfile.TemporaryDirectory() as folder:
        run = LIBRARIES[library](
            workload.build_model(shape), workload.build_data(shape), shape, folder, "true"
        )
        run.fit()
        found = {mode: run.score(mode) for mode in run.modes}
    for values in found.values():
        _check(values, shape)
    torch.save(found, file)
    return list(found)


def _check(values, shape):
    if tuple(values.shape) != (shape.queries, shape.candidates) or not values.isfinite().all():
        raise ValueError(
            f"scores of shape {tuple(values.shape)}, or not finite; "
            f"expected {(shape.queries, shape.candidates)}"
        )


def work(task):
    """What a process of its own does: one line of JSON on the real standard output,
    the libraries' chatter elsewhere."""
    out = os.dup(1)
    os.dup2(2, 1)
    workload.one_thread()
    shape = Shape(**task["shape"])
    found = (
        scores(task["library"], shape, task["file"])
        if task.get("file")
        else measure(task["library"], shape, task["seed"])
    )
    os.write(out, (json.dumps(found) + "\n").encode())


# -------------------------------------------------------------------------------------- the sitting


def spawn(library, shape, **more):
    """`work` in a new process; RuntimeError with the end of its output if it fails."""
    task = json.dumps({"library": library, "shape": asdict(shape), **more})
    done = subprocess.run(
        [sys.executable, __file__, "--task", task], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{library} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def agreement(libraries, shape):
    """{(library, mode): {correlation, error}} against msif's exact scores;
    RuntimeError if kronfluence's are others."""
    import torch
    from libraries import COMPARED
    from ours import DAMPING

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for library in ("msif", *(x for x in libraries if x in COMPARED)):
            file = os.path.join(folder, library)
            spawn(library, shape, file=file)
            for mode, values in torch.load(file).items():
                reference = found.setdefault("reference", values.double())
                found[library, mode] = compare(values.double(), reference)
                correlation, error = found[library, mode].values()
                print(
                    f"  scores of {library}, {mode}, damping {DAMPING} × mean: "
                    f"correlation {correlation:.6f}, relative error {error:.1e}",
                    flush=True,
                )
                if library == "kronfluence" and not correlation >= AGREE:
                    raise RuntimeError(
                        f"the scores of {library} and msif correlate by {correlation:.4f} only"
                    )
    del found["reference"]
    return found


def compare(values, reference):
    """Pearson's correlation over all pairs, and the relative error in the Frobenius norm."""
    import torch

    correlation = torch.corrcoef(torch.stack([values.flatten(), reference.flatten()]))[0, 1].item()
    error = ((values - reference).norm() / reference.norm()).item()
    return {"correlation": round(correlation, 8), "error": float(f"{error:.3g}")}


def run_shape(name, shape, libraries, repetitions):
    """The records of one shape: libraries take turns,
    so that a drift of the machine hits all alike."""
    agree, runs = agreement(libraries, shape) if "msif" in libraries else {}, {}
    for n in range(repetitions):
        for library in libraries:
            start = time.perf_counter()
            for mode, costs in spawn(library, shape, seed=n).items():
                runs.setdefault((library, mode), []).append(costs)
            seconds = f"{time.perf_counter() - start:.0f} s"
            print(
                f"  {name}, repetition {n + 1} of {repetitions}: {library}, {seconds}", flush=True
            )
    return [record(name, shape, *key, found, agree.get(key, {})) for key, found in runs.items()]


def record(name, shape, library, mode, runs, agree):
    """One line of peers.json: the spread of the repetitions, and the agreement with msif."""
    from libraries import PACKAGES

    found = {
        "library": library,
        "version": workload.installed(PACKAGES[library]),
        "shape": name,
        "queries": shape.queries,
        "mode": mode,
        "repetitions": len(runs),
        **{x: agree.get(x) for x in ("correlation", "error")},
    }
    for x in MEASURED:
        found |= spread(x, [run[x] for run in runs])
    return {x: found[x] for x in FIELDS}


def require(libraries):
    """Raise unless each library is installed in the version that requirements.txt pins."""
    from libraries import PACKAGES

    pins = dict(
        re.findall(r"^(\S+)==(\S+)$", (ROOT / "benchmarks" / "requirements.txt").read_text(), re.M)
    )
    for package in (PACKAGES[x] for x in libraries if x != "msif"):
        if (there := workload.installed(package)) != pins[package]:
            raise SystemExit(
                f"{package} is {there or 'not installed'}, expected {pins[package]}: "
                f"{sys.executable} -m pip install --no-deps -r benchmarks/requirements.txt"
            )


def run(out, shapes, libraries, repetitions, resume):
    """All shapes, each written to out/peers.json when it is finished."""
    require(libraries)
    records = read(out / "peers.json", []) if resume else []
    write(out / "machine.json", workload.machine())
    for name, shape in shapes.items():
        if {(name, x) for x in libraries} <= {(r["shape"], r["library"]) for r in records}:
            continue
        print(f"{name}: {shape}", flush=True)
        records = [r for r in records if r["shape"] != name] + run_shape(
            name, shape, libraries, repetitions
        )
        write(out / "peers.json", records)
        report(out)


# ------------------------------------------------------------------------------------ command line


def report(out):
    """peers.md and peers.png from peers.json."""
    records = read(out / "peers.json")
    (out / "peers.md").write_text(table(records))
    figure(records).savefig(out / "peers.png", dpi=160, metadata={"Software": None})


def main():
    """The command line: the benchmark, its quick form, its report, or one of its processes."""
    several = {"type": lambda text: text.split(",")}
    parser = workload.options(
        __doc__,
        task={"type": json.loads, "help": "used by the benchmark itself"},
        shapes=several | {"default": list(SHAPES), "help": f"some of {','.join(SHAPES)}"},
        libraries=several | {"default": list(NAMES), "help": f"some of {','.join(NAMES)}"},
        repetitions={"type": int, "default": 5},
        resume={"action": "store_true", "help": "keep the finished shapes of peers.json"},
        quick={"action": "store_true", "help": "msif alone, a tiny shape, one repetition"},
    )
    given = parser.parse_args()
    if given.task:
        work(given.task)
    elif given.report_only:
        report(given.out)
    elif given.quick:
        run(given.out, QUICK, ["msif"], 1, False)
    else:
        run(
            given.out,
            {name: (SHAPES | QUICK)[name] for name in given.shapes},
            given.libraries,
            given.repetitions,
            given.resume,
        )


if __name__ == "__main__":
    main()
