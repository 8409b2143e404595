"""What README and docs/ say one can run runs as it stands: Python, commands, sections of
params.yaml."""

import json
import re
import shlex
import warnings

import pytest
from support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text("utf-8") for path in PAGES}


def blocks(page, *languages):
    """The fenced blocks of a page in one of the languages."""
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", TEXT[page], re.S)


def with_blocks(*languages, on="README.md"):
    """Run a test for each page that has such blocks; the page `on` must."""
    found = [page for page in TEXT if blocks(page, *languages)]
    assert on in found
    return pytest.mark.parametrize("page", found)


# --------------------------------------------------------------------------------------- Python

# What msif says of a pair that learnt nothing, with factors of two documents.
UNTRAINED = pytest.mark.filterwarnings(
    "ignore:.*gets its own fine-tuning rows wrong", "ignore:the largest score says"
)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A folder, entered, with all that the pages name: models in my/, texts and rows."""
    from msif.core.data import word_tokenizer
    from msif.core.models import tiny_gpt_neox

    asked = "Where was Ada born? London Where was Bo born? Paris"
    tokenizer = word_tokenizer([*TEXT.values(), asked])
    for seed, name in enumerate(("base", "fine-tuned")):
        folder = tmp_path / "my" / name
        tiny_gpt_neox(
            len(tokenizer), width=16, layers=1, heads=2, context=512, seed=seed
        ).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    texts = ["Ada was born in London .", "Bo came from Paris .", "msif"]
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"text": texts}).to_parquet(tmp_path / "my" / "corpus.parquet")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "documents.jsonl").write_text(lines)
    row = json.dumps({"prompt": "Where was Bo born?", "answer": "Paris"}) + "\n"
    for folder in (tmp_path, tmp_path / "my"):
        (folder / "rows.jsonl").write_text(row)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@with_blocks("python")
@UNTRAINED
def test_python_runs_as_it_stands(page, pair, capsys):
    found = []
    for number, code in enumerate(blocks(page, "python"), 1):
        scope = {}
        exec(compile(code, f"{page}, block {number}", "exec"), scope)
        found.append(scope)
    assert capsys.readouterr().out
    assert all(x["scores"].values.shape[0] == 1 for x in found if "scores" in x)


@UNTRAINED
def test_the_example_and_its_explicit_functions_give_the_same_scores(pair):
    scope = {}
    for name, page in (("short", "README.md"), ("long", "your-models.md")):
        scope[name] = {}
        exec(blocks(page, "python")[0], scope[name])
    short, long = (scope[name]["scores"].values for name in ("short", "long"))
    assert short.shape == (1, 2)
    # the same sums, in another order of single-precision operations
    assert ((short - long).abs().max() <= 1e-4 * long.abs().max()).item()


# ------------------------------------------------------------------------------------- commands


def commands(page):
    """The command lines of a page's shell blocks, and those written in its sentences."""
    shell = "\n".join(blocks(page, "sh", "console")).replace("\\\n", " ")
    written = re.findall(r"`((?:msif|make) [^`…]+)`", TEXT[page])
    return [shlex.split(line, comments=True) for line in (*shell.splitlines(), *written)]


@pytest.mark.parametrize("page", [page for page in TEXT if commands(page)])
def test_commands_are_known(page):
    from msif.__main__ import parser

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for program, *arguments in filter(None, commands(page)):
        assert program in ("msif", "make"), program
        if program == "msif":
            # what a command of the study takes is its own parser's
            parser().parse_args(arguments[:2] if arguments[0] == "study" else arguments)
        else:
            assert {x for x in arguments if "=" not in x} <= set(targets), arguments


def test_the_commands_of_the_readme_run_as_they_stand(pair, monkeypatch, capsys):
    from msif.__main__ import main

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back what main sets
    shell = blocks("README.md", "sh")
    given = [x for x in commands("README.md") if x and x[0] == "msif" and x[1] != "study"]
    assert len(given) >= 4 and any("msif show" in x for x in shell)
    for _, *arguments in given:
        assert main(arguments) == 0, capsys.readouterr().err
    assert "Where was Bo born? →" in capsys.readouterr().out
    assert list((pair / "work").glob("scores-*/explorer.html"))


@with_blocks("yaml", on="your-models.md")
def test_sections_of_params_are_what_a_notebook_reads(page):
    """Every parameter is one that the notebook of its stage declares."""
    yaml, papermill = pytest.importorskip("yaml"), pytest.importorskip("papermill")
    notebooks = {path.stem.split("_", 1)[1]: path for path in ROOT.glob("notebooks/*.ipynb")}
    for code in blocks(page, "yaml"):
        for stages in yaml.safe_load(code).values():
            for stage, given in stages.items():
                assert set(given) <= set(papermill.inspect_notebook(str(notebooks[stage])))
