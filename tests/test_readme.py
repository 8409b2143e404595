"""The README quotes what the stages printed, and its example runs as it stands."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_quoted_numbers_are_those_of_the_report():
    metrics = json.loads((ROOT / "reports" / "full" / "fact_tracing.metrics.json").read_text())
    quoted = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.M)
    assert len(quoted) >= 5
    for method, raw, normalised in quoted:
        forms = metrics[method]
        assert (raw, normalised) == (f"{forms['raw']['mrr']:.3f}", f"{forms['normalised']['mrr']:.3f}"), method


def test_every_path_it_names_exists():
    named = re.findall(r"\]\((\S+?)\)|`((?:reports|tests|msif|notebooks)/[\w/.]+)`", README)
    assert named and all((ROOT / (a or b)).exists() for a, b in named)


def test_its_example_runs(tmp_path):
    """On a pair of small models saved in the folders that stand for "my/base" and "my/fine-tuned"."""
    from msif.corpus import generate
    from msif.data import word_tokenizer
    from msif.models import tiny_gpt_neox
    corpus = generate(0, fine_tuned=2, held_out=1, objects=2, fillers=2)
    texts = [d["text"] for d in corpus.documents]
    prompts, answers = ([r[key] for r in corpus.finetuning] for key in ("prompt", "answer"))
    tokenizer = word_tokenizer([*texts, *prompts, "Where was Ada born? London"])
    for seed, name in enumerate(("base", "fine-tuned")):
        tiny_gpt_neox(len(tokenizer), width=16, layers=1, heads=2, context=512, seed=seed).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "base")
    code = re.search(r"```python\n(.*?)```", README, re.S)[1].replace("my/", f"{tmp_path}/")
    scope = {"texts": texts, "prompts": prompts, "answers": answers}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["scores"].values.shape == (1, len(texts))
