"""What the first run has read, later runs find again, or stop: files by their digests,
hub ids by their commits."""

import hashlib
import json
from collections import Counter

import pytest

from msif.core.files import json_lines
from msif.study.corpora import pinned

LAYOUT = "rows/*.jsonl: the rows"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows").mkdir()
    for name in "ab":
        (tmp_path / "rows" / f"{name}.jsonl").write_text(
            "".join(json.dumps({"n": n, "from": name}) + "\n" for n in range(10))
        )
    return tmp_path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache as a download leaves it:
    what `main` of one model and one data set stands for, and a snapshot of that commit."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def download(repository, commit, file):
        at = tmp_path / "hub" / repository
        (at / "snapshots" / commit).mkdir(parents=True)
        (at / "snapshots" / commit / file).write_text("{}")
        (at / "refs").mkdir(exist_ok=True)
        (at / "refs" / "main").write_text(commit)

    return download


def files(folder):
    return pinned.pinned_files(folder, "Rows", ["rows/*.jsonl"], LAYOUT)


def recorded(folder):
    return json.loads((folder / "digests.json").read_text())


def test_the_first_run_records_what_sha256_says_and_equal_files_pass(folder):
    first = files(folder)
    assert first == {
        f"rows/{x}.jsonl": hashlib.sha256((folder / "rows" / f"{x}.jsonl").read_bytes()).hexdigest()
        for x in "ab"
    }
    assert recorded(folder) == {"Rows": first} and files(folder) == first
    assert sorted(p.name for p in folder.iterdir()) == ["digests.json", "rows"]


@pytest.mark.parametrize(
    "change, says",
    [
        (
            lambda at: (at / "a.jsonl").write_text("{}\n"),
            "Rows: rows/a.jsonl has changed.*Expected [0-9a-f]{64}, found [0-9a-f]{64}",
        ),
        (
            lambda at: (at / "b.jsonl").unlink(),
            "Rows: rows/b.jsonl has changed.*found no such file",
        ),
        (
            lambda at: (at / "c.jsonl").write_text(""),
            "Rows: rows/c.jsonl has changed.*Expected no such file",
        ),
    ],
)
def test_a_changed_a_missing_and_a_new_file_are_refused_until_the_group_is_removed(
    change, says, folder
):
    files(folder)
    before = recorded(folder)
    change(folder / "rows")
    with pytest.raises(ValueError, match=says + ".*remove 'Rows' from .*digests.json"):
        files(folder)
    assert recorded(folder) == before
    (folder / "digests.json").write_text("{}")
    assert set(files(folder)) == {f"rows/{p.name}" for p in (folder / "rows").iterdir()}


def test_a_pattern_that_finds_nothing_says_what_to_put_where(folder):
    with pytest.raises(
        FileNotFoundError, match=r"lacks models/\*. Put there, as files or links:\nrows"
    ):
        pinned.pinned_files(folder, "Rows", ["rows/*.jsonl", "models/*"], LAYOUT)
    assert not (folder / "digests.json").exists()


def test_groups_are_recorded_beside_each_other(folder):
    pinned.enforced(folder, "one", {"x": "1"}), pinned.enforced(folder, "two", {"x": "2"})
    assert recorded(folder) == {"one": {"x": "1"}, "two": {"x": "2"}}
    assert pinned.enforced(folder, "one", {"x": "1"}) == {"x": "1"}
    with pytest.raises(
        ValueError, match="two: x has changed since the first run. Expected 2, found 1"
    ):
        pinned.enforced(folder, "two", {"x": "1"})


def test_a_hub_id_stays_at_the_commit_of_the_first_run(folder, hub):
    (
        hub("models--tiny--net", "a" * 40, "config.json"),
        hub("datasets--tiny--rows", "d" * 40, "README.md"),
    )
    for again in (False, True):
        assert pinned.pinned_models(
            folder, {"base": {"source": "tiny/net", "revision": "main", "dtype": "float32"}}
        ) == {"base": {"source": "tiny/net", "revision": "a" * 40, "dtype": "float32"}}
        assert pinned.pinned_rows(folder, {"source": "tiny/rows"}) == {"commit": "d" * 40}
        hub(
            "models--tiny--net", "b" * 40, "config.json"
        ) if not again else None  # the hub's main moves on
    assert recorded(folder) == {
        "tiny/net at main": {"commit": "a" * 40},
        "tiny/rows at main": {"commit": "d" * 40},
    }


def test_a_local_model_and_local_rows_are_checked_by_their_files(folder):
    net = folder / "net"
    net.mkdir(), (net / "config.json").write_text("{}")
    sources = [
        lambda: pinned.pinned_models(folder, {"base": {"source": str(net), "revision": "main"}}),
        lambda: pinned.pinned_rows(folder, {"source": str(folder / "rows")}),
        lambda: pinned.pinned_rows(folder, {"source": str(folder / "rows" / "b.jsonl")}),
    ]
    assert sources[0]() == {"base": {"source": str(net), "revision": None}}
    assert list(sources[1]()) == ["a.jsonl", "b.jsonl"] and list(sources[2]()) == ["b.jsonl"]
    (net / "config.json").write_text("{ }"), (folder / "rows" / "b.jsonl").write_text("{}\n")
    for source, name in zip(sources, ("net: config.json", "rows: b.jsonl", "b.jsonl: b.jsonl")):
        with pytest.raises(ValueError, match=f"{name} has changed"):
            source()


def test_a_source_that_is_nowhere_is_refused_at_once(folder):
    for source in ("data/none.jsonl", "one-word", "a/b/c"):
        with pytest.raises(
            FileNotFoundError,
            match="does not exist; expected a file, a folder or the id of a dataset on the hub",
        ):
            pinned.pinned_rows(folder, {"source": source})
    with pytest.raises(
        OSError, match="hub does not say which commit of the dataset nobody/none revision main is"
    ):
        pinned.pinned_rows(folder, {"source": "nobody/none"})
    assert not (folder / "digests.json").exists()


def test_every_row_of_a_file_is_as_likely_as_any_other(folder):
    source = str(folder / "rows" / "a.jsonl")
    counts = Counter(
        row["n"]
        for seed in range(1000)
        for row in pinned.sampled_rows(folder, 4, seed, source=source)
    )
    # √(1000 · 0.4 · 0.6)
    assert sum(counts.values()) == 4000 and all(
        400 - 5 * 15.5 < counts[n] < 400 + 5 * 15.5 for n in range(10)
    )
    assert pinned.sampled_rows(folder, 4, 7, source=source) == pinned.sampled_rows(
        folder, 4, 7, source=source
    )
    assert [row["n"] for row in pinned.sampled_rows(folder, 99, source=source)] == list(range(10))


def test_a_line_that_is_not_json_is_refused_by_its_number(folder):
    (folder / "rows" / "a.jsonl").write_text('{"n": 0}\n{"n": \n')
    for read in (json_lines, lambda path: pinned.sampled_rows(folder, 5, source=str(path))):
        with pytest.raises(ValueError, match="a.jsonl, line 2 is not JSON"):
            list(read(folder / "rows" / "a.jsonl"))
