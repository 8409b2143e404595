"""What `msif.plan` predicts after a calibration of seconds, beside what fits and scores then took.

    python benchmarks/planned.py                     models of 10 M and 40 M tracked weights
    python benchmarks/planned.py --model FOLDER      a model of yours as well, on short documents
    python benchmarks/planned.py --report-only       the table from planned.json

Llama-like models with random weights, documents of 20 to 60 random tokens, one thread, float32.
Prediction and measurement are processes of their own. Memory: what the process grows by at its
peak, the model included; time: CPU seconds, as other programs may run; disk: the most that the
folder of the fit held.
"""

import gc
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import workload
from workload import markdown, number, read, write

MB = 1e6


@dataclass(frozen=True)
class Size:
    """A model, a folder's or one of these shapes, and its documents."""

    name: str
    width: int = 0
    inner: int = 0
    layers: int = 0
    heads: int = 0
    groups: int = 0
    vocabulary: int = 16384
    documents: int = 256
    shortest: int = 20
    longest: int = 60
    batch_size: int = 16
    queries: int = 4
    folder: str | None = None


SIZES = (
    Size("10 M", 320, 864, 8, 5, 5),
    Size("40 M", 512, 1376, 14, 8, 4, documents=96),
)


def own(folder):
    """A model of the user's, on 64 documents of about 24 tokens."""
    return Size(Path(folder).name, folder=folder, documents=64, shortest=16, longest=32)


def tiny():
    """A model that takes no time: what a first fit and score take once."""
    return Size("tiny", 32, 96, 1, 4, 2, 64, documents=4, longest=30, batch_size=2)


def network(size):
    """The `Tracked` model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from msif.core.layers import tracked
    from msif.core.models import load_model

    if size.folder:
        return tracked(load_model(size.folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        vocab_size=size.vocabulary,
        max_position_embeddings=512,
    )
    return tracked(LlamaForCausalLM(config).eval())


def documents(size):
    """Random ones."""
    from msif.core.data import Sequence

    draw, found = random.Random(0), []
    for n in range(size.documents):
        length = draw.randint(size.shortest, size.longest)
        ids = tuple(draw.randrange(5, size.vocabulary) for _ in range(length))
        found.append(Sequence(n, ids, ids))
    return found


def predicted(size):
    """{"fit", "score": {peak and disk in bytes, seconds, of the calibration too}}; and the peak
    from shapes alone."""
    from msif.scale import calibration
    from msif.scale.plan import plan_fit, plan_score

    net, data = network(size), documents(size)
    lengths, how = [len(x.input_ids) for x in data], {"batch_size": size.batch_size}
    timed = {"clock": time.process_time, **how}
    known = calibration.of_fit(net, data, samples=1, **timed)
    one = {"draws": 1, "memory": "1TiB", **how}
    fit = plan_fit(net, lengths, calibration=known, **one)
    found = {
        "weights": net.weights,
        "tokens": sum(lengths),
        "fit": _numbers(fit, known) | {"peak_of_shapes": plan_fit(net, lengths, **one).peak},
    }
    known = calibration.of_scores(net, data, size.queries, **timed)
    score = plan_score(net, lengths, size.queries, calibration=known, **how)
    shapes = plan_score(net, lengths, size.queries, **how).peak
    return found | {"score": _numbers(score, known) | {"peak_of_shapes": shapes}}


def _numbers(plan, known):
    return {
        "peak": plan.peak,
        "disk": plan.disk,
        "seconds": plan.time,
        "calibration_seconds": known.seconds,
    }


def measured(size):
    """{"fit", "score": {peak and disk in bytes, seconds}}."""
    import torch

    from msif.core.influence import score
    from msif.core.resources import return_memory
    from msif.scale import fitting

    def run(size, folder):
        net, data = network(size), documents(size)
        settings = {"samples": 1, "batch_size": size.batch_size, "memory": "1TiB"}
        start = time.process_time()
        fitting.fit(folder / "factors", net, data, **settings)
        found = {"fit": {"peak": _status("VmHWM"), "seconds": time.process_time() - start}}
        draw, w = torch.Generator().manual_seed(0), {}
        for x in net.layers:  # as `queries.preconditioned` has them
            shape = size.queries, x.inputs, x.out_features
            w[x.name] = torch.randn(*shape, generator=draw).mT
        _forget()
        start = time.process_time()
        score(net, data, w, batch_size=size.batch_size)
        return found | {"score": {"peak": _status("VmHWM"), "seconds": time.process_time() - start}}

    def _forget():
        gc.collect()
        return_memory()
        Path("/proc/self/clear_refs").write_text("5")

    with tempfile.TemporaryDirectory() as folder:
        run(tiny(), Path(folder))
        _forget()
        before = _status("VmRSS")
        (Path(folder) / "own").mkdir()
        with Watched(Path(folder) / "own") as disk:
            found = run(size, Path(folder) / "own")
    for what in found.values():
        what["peak"] -= before
    found["fit"]["disk"] = disk.most
    return found


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{key}:"))


class Watched:
    """most: bytes that a folder held, looked at ten times a second."""

    def __init__(self, folder):
        self.folder, self.most, self.done = folder, 0, threading.Event()
        self.thread = threading.Thread(target=self._look)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def _look(self):
        while not self.done.wait(0.1):
            held = 0
            for path in self.folder.rglob("*"):
                try:
                    held += path.stat().st_size * path.is_file()
                except OSError:  # just removed
                    continue
            self.most = max(self.most, held)


def child(what, size):
    """The record of `predicted` or `measured` from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", what, json.dumps(asdict(size))],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{what} {size.name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(out, sizes):
    """Records of the sizes into out/planned.json, those of other sizes kept; and the table."""
    records = {x["name"]: x for x in read(out / "planned.json", [])}
    for size in sizes:
        found, took = child("predicted", size), child("measured", size)
        record = {"name": size.name, "weights": found["weights"], "tokens": found["tokens"]}
        record |= {"documents": size.documents, "queries": size.queries}
        for what in ("fit", "score"):
            record[what] = {"predicted": found[what], "measured": took[what]}
        records[size.name] = record
        write(out / "planned.json", list(records.values()))
        print(table([record]), flush=True)
    write(out / "planned.machine.json", workload.machine())
    report(out)


ROWS = (
    ("fit", "peak", "fit, memory [MB]", MB),
    ("fit", "disk", "fit, disk [MB]", MB),
    ("fit", "seconds", "fit, CPU seconds", 1),
    ("score", "peak", "scoring, memory [MB]", MB),
    ("score", "seconds", "scoring, CPU seconds", 1),
)


def table(records):
    """planned.md's table: predicted / measured (their ratio)."""
    head = ["predicted / measured (ratio)", *(f"{x['weights'] / 1e6:.0f} M" for x in records)]
    rows = []
    for what, key, name, unit in ROWS:
        cells = []
        for x in records:
            one, two = x[what]["predicted"][key], x[what]["measured"][key]
            digits = 0 if unit > 1 else 1
            cells.append(
                f"{number(one / unit, digits)} / {number(two / unit, digits)} ({one / two:.2f})"
            )
        rows.append([name, *cells])
    taken = [
        f"{x['fit']['predicted']['calibration_seconds']:.0f}, "
        f"{x['score']['predicted']['calibration_seconds']:.0f}"
        for x in records
    ]
    return markdown(head, [*rows, ["calibrations, CPU seconds", *taken]])


def page(records):
    """planned.md."""
    text = [
        "# What a plan predicts, beside what was measured",
        "Tracked weights by column; predicted after a calibration with a few batches, and measured "
        "in another process, on one CPU thread in float32. Made by `benchmarks/planned.py`.",
        table(records).rstrip(),
    ]
    return "\n\n".join(text) + "\n"


def report(out):
    """planned.md from planned.json."""
    (out / "planned.md").write_text(page(read(out / "planned.json")))


def main():
    """The command line."""
    if sys.argv[1:2] == ["--child"]:
        workload.one_thread()
        size = Size(**json.loads(sys.argv[3]))
        print(json.dumps({"predicted": predicted, "measured": measured}[sys.argv[2]](size)))
        return
    more = {
        "model": {"default": None, "help": "folder of a model to add"},
        "sizes": {"default": ",".join(x.name for x in SIZES), "help": "which of them, or none"},
    }
    given = workload.options(__doc__, **more).parse_args()
    if given.report_only:
        report(given.out)
        return
    sizes = [x for x in SIZES if x.name in given.sizes.split(",")]
    run(given.out, sizes + ([own(given.model)] if given.model else []))


if __name__ == "__main__":
    main()
