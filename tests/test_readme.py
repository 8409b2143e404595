"""The README quotes what the stages printed, and its example runs as it stands."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_quoted_numbers_are_those_of_the_report():
    metrics = json.loads((ROOT / "reports" / "full" / "fact_tracing.metrics.json").read_text())
    table = README.split("| method | MRR, raw")[1].split("\n\n")[0]
    quoted = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+|–) \|$", table, re.M)
    assert len(quoted) == table.count("\n") - 1 >= 5                     # every row but the line below the heading
    for method, *numbers in quoted:
        forms = metrics[method]
        assert numbers == [f"{forms[form]['mrr']:.3f}" if form in forms else "–" for form in ("raw", "normalised")], method


def test_every_path_it_names_exists():
    named = re.findall(r"\]\((\S+?)\)|`((?:reports|tests|msif|notebooks)/[\w/.]+)`", README)
    assert named and all((ROOT / (a or b)).exists() for a, b in named)


def test_its_example_runs(tmp_path):
    """On a pair of small models saved in the folders that stand for "my/base" and "my/fine-tuned"."""
    from msif.data import word_tokenizer
    from msif.models import tiny_gpt_neox
    tokenizer = word_tokenizer([README])
    for seed, name in enumerate(("base", "fine-tuned")):
        tiny_gpt_neox(len(tokenizer), width=16, layers=1, heads=2, context=512, seed=seed).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / "base")
    code = re.search(r"```python\n(.*?)```", README, re.S)[1].replace("my/", f"{tmp_path}/")
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["scores"].values.shape == (1, 2)
