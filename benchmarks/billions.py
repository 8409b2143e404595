"""What influence at 2.8 billion parameters takes: pythia-2.8b and dolly-v2-3b (2.775 B:
hidden 2560, 32 layers, 32 heads, 10240).

    python benchmarks/billions.py          the plan for three GPUs, from a model without weights,
                                           in seconds
    python benchmarks/billions.py --run    the same architecture with random weights on this
                                           machine: part of a fit and a batch of scores, measured
                                           beside the plan (needs a GPU, or a smaller --hidden)

The plan's sizes follow from shapes. Its hours rest on the rates below,
which are assumptions until --run measures them.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from msif.core.data import Sequence
from msif.core.influence import score
from msif.core.layers import Tracked, tracked, tracked_layers
from msif.scale import fitting, processes
from msif.scale.plan import plan_fit, plan_score
from msif.scale.sizes import human, parse_bytes

REPORTS = Path(__file__).parent.parent / "reports" / "benchmarks"


@dataclass(frozen=True)
class GPU:
    """Memory, batch that suits it, and assumed rates in FLOP/s: 40 % of the bfloat16 peak for the
    model, 50 % of the TF32 peak for products, and what a float64 eigensolver reaches."""

    name: str
    memory: str
    batch_size: int
    model_rate: float
    product_rate: float
    eigh_rate: float


GPUS = (
    GPU("H200, 141 GB", "131GiB", 16, 0.4 * 989e12, 0.5 * 494e12, 2e12),
    GPU("A100, 80 GB", "74GiB", 8, 0.4 * 312e12, 0.5 * 156e12, 1e12),
    GPU("RTX 4090, 24 GB", "22GiB", 2, 0.4 * 165e12, 0.5 * 82e12, 0.5e12),
)


def architecture(
    hidden=2560, layers=32, heads=32, intermediate=10240, vocabulary=50280, context=2048
):
    """The model's class and shapes on the meta device, in bfloat16: no weights."""
    config = GPTNeoXConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        rotary_pct=0.25,
        use_parallel_residual=True,
    )
    with torch.device("meta"):
        return GPTNeoXForCausalLM(config).to(torch.bfloat16).eval()


def plans(model, tokens, length, documents, queries):
    """One row a GPU: of a fit on `tokens` in sequences of `length`,
    and of scoring `documents` of that length."""
    tracked_model = tracked(model)
    for gpu in GPUS:
        fit = plan_fit(
            tracked_model,
            [length] * (tokens // length),
            batch_size=gpu.batch_size,
            memory=gpu.memory,
        )
        scoring = plan_score(
            tracked_model, [length] * documents, queries, batch_size=gpu.batch_size
        )
        room = parse_bytes(gpu.memory) - scoring.peak + scoring.vectors
        seconds = scoring.seconds(gpu.model_rate, gpu.product_rate)
        yield {
            "gpu": gpu.name,
            "parameters": fit.parameters,
            "partitions": len(fit.partitions),
            "passes over the data": 2 * len(fit.partitions),
            "factors": human(fit.factors),
            "disk while fitting": human(fit.disk),
            "peak memory, fit": human(fit.peak),
            "fit, forward + backward passes": round(fit.passes, 2),
            "fit, hours": fit.seconds(gpu.model_rate, gpu.product_rate, gpu.eigh_rate) / 3600,
            "decompositions, hours": fit.eigh_flops / gpu.eigh_rate / 3600,
            f"peak memory, scoring for {queries} queries": human(scoring.peak),
            "queries at once": int(room * queries // scoring.vectors),
            "scoring, hours per million documents": seconds / 3600 * 1e6 / documents,
        }


def table(rows):
    """Markdown, one column a GPU."""

    def shown(x):
        return f"{x:.2f}" if isinstance(x, float) else f"{x:,}" if isinstance(x, int) else x

    head, *names = rows[0]
    lines = [f"| | {' | '.join(x[head] for x in rows)} |", "|---" * (len(rows) + 1) + "|"]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(shown(x[name]) for x in rows)} |" for name in names]
    )


def measured(model, sequences, batch_size, queries, memory):
    """Fit the first partition and score one batch; what was measured beside what was planned."""
    layers, device = tracked_layers(model), next(model.parameters()).device
    plan = plan_fit(
        Tracked(model, layers),
        [len(x.input_ids) for x in sequences],
        batch_size=batch_size,
        memory=memory,
    )
    part, before = list(plan.partitions[0].layers), _peak(device, reset=True)
    first = Tracked(model, part)
    alone = plan_fit(
        first,
        [len(x.input_ids) for x in sequences],
        batch_size=batch_size,
        memory=memory,
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fitting.fit(
            Path(folder) / "factors",
            first,
            sequences,
            labels="sampled",
            samples=1,
            batch_size=batch_size,
            memory=memory,
            every=1e9,
            title="fit",
        )
        _finish(device)
        seconds, peak = time.perf_counter() - start, _peak(device)
    tokens = sum(len(x.input_ids) for x in sequences)
    flops = alone.model_flops + alone.product_flops + alone.eigh_flops
    w = {
        x.name: torch.randn(queries, x.out_features, x.in_features + x.bias, device=device)
        for x in part
    }
    start = time.perf_counter()
    score(first, sequences[:batch_size], w, batch_size=batch_size)
    _finish(device)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "parameters": plan.parameters,
        "tokens": tokens,
        "layers": len(part),
        "tokens per second, fit": tokens / seconds,
        "seconds, fit": seconds,
        "flop per second, fit": flops / seconds,
        "bytes, planned": alone.peak,
        "bytes, measured": peak - before + (alone.model if device.type == "cpu" else 0),
        "candidates per second": batch_size / (time.perf_counter() - start),
    }


def _finish(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak(device, reset=False):
    """Peak bytes: of the device's allocator,
    or of the process (where resetting leaves what is resident)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return 0 if reset else torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = status.read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))


def main():
    """The plan, or with --run what this machine takes, printed and written to the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=2**20,
        help="tokens that the factors are fitted on, of each of the two models",
    )
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--documents", type=int, default=10**5)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument(
        "--run", action="store_true", help="measure on this machine with random weights"
    )
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--memory", help="budget of the run; default: what is free")
    parser.add_argument("--folder", type=Path, default=REPORTS)
    given = parser.parse_args()
    model = architecture(given.hidden, given.layers, given.hidden // 80, 4 * given.hidden)
    given.folder.mkdir(parents=True, exist_ok=True)
    if not given.run:
        rows = list(plans(model, given.tokens, given.length, given.documents, given.queries))
        print(text := table(rows))
        (given.folder / "billions.md").write_text(text + "\n")
        (given.folder / "billions.json").write_text(json.dumps(rows, indent=1) + "\n")
        return
    model = model.to_empty(device=processes.device())
    torch.manual_seed(0)
    with torch.no_grad():
        [p.normal_(std=0.02) for p in model.parameters()]
    rotary = type(model.gpt_neox.rotary_emb)(model.config)  # its buffers are no weights
    model.gpt_neox.rotary_emb = rotary.to(processes.device())
    shape = given.tokens // given.length, given.length
    ids = torch.randint(model.config.vocab_size, shape).tolist()
    sequences = [Sequence(n, tuple(x), tuple(x)) for n, x in enumerate(ids)]
    found = measured(model, sequences, given.batch_size, given.queries, given.memory)
    print(json.dumps(found, indent=1))
    (given.folder / "billions_measured.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
