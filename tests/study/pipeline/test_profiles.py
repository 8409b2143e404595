"""One list says which profiles run; what each runs follows from its sections."""

import pytest
import yaml

from msif.study.pipeline import profiles
from msif.study.pipeline.study import left_out

PARAMS = """# what runs
profiles: [tiny]  # more?

tiny:
  demo: {n: 3}
none: {}
sure: {demo: {n: 1}, other: {}}
"""
DVC = """vars:
  - runs:
      demo: [tiny]
      other: []
stages: {}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    for name in ("01_demo", "02_other"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_enabling_a_profile_changes_one_line_of_each_file_once(study):
    assert "profiles: [tiny, sure]" in profiles.enable("sure")
    params, dvc = (study / "params.yaml").read_text(), (study / "dvc.yaml").read_text()
    assert params == PARAMS.replace("[tiny]", "[tiny, sure]")
    assert dvc == DVC.replace("demo: [tiny]", "demo: [tiny, sure]").replace("[]", "[sure]")
    assert "already" in profiles.enable("sure")
    assert ((study / "params.yaml").read_text(), (study / "dvc.yaml").read_text()) == (params, dvc)


def test_a_stage_runs_for_the_profiles_that_have_a_section_for_it(study):
    edited = PARAMS.replace("[tiny]", "[tiny, none, sure]")
    (study / "params.yaml").write_text(edited)
    assert profiles.runs() == {"demo": ["tiny", "sure"], "other": ["sure"]}
    assert profiles.follow() == ["demo", "other"] and profiles.follow() == []
    assert yaml.safe_load((study / "dvc.yaml").read_text())["vars"][0]["runs"] == profiles.runs()


@pytest.mark.parametrize("name", ["huge", "../../evil"])
def test_an_unknown_profile_is_refused(study, name):
    with pytest.raises(ValueError, match=f"unknown profile '{name}'; there are: tiny, none, sure"):
        profiles.enable(name)
    (study / "params.yaml").write_text(PARAMS.replace("[tiny]", f"['{name}']"))
    with pytest.raises(ValueError, match="unknown profile"):
        profiles.follow()


def test_all_that_is_to_run_is_looked_at_before_any_of_it_starts(study, monkeypatch):
    seen = []
    monkeypatch.setattr(profiles, "parameters", lambda *names: seen.append(names))
    (study / "params.yaml").write_text(PARAMS.replace("[tiny]", "[tiny, none, sure]"))
    profiles.check_all(["sure", "none", "tiny"])
    assert sorted(seen) == [("01_demo", "sure"), ("01_demo", "tiny"), ("02_other", "sure")]


def test_a_stage_whose_data_is_not_there_is_left_out_and_the_others_run(study):
    pair = {"rows": {"source": "data/rows.jsonl"}, "corpora": [{"source": "someone/texts"}]}
    sections = {
        "sure": {"demo": {"n": 1}, "other": {"pair": pair}},
        "alone": {"other": {"pair": pair}},
    }
    chosen = {"profiles": ["sure", "alone"], **sections}
    (study / "params.yaml").write_text(yaml.safe_dump(chosen))
    assert profiles.runs() == {"demo": ["sure"], "other": ["alone"]}
    assert profiles.lacking("sure", "other") == ["data/rows.jsonl"]
    assert left_out(["sure", "alone"]) == [
        "sure: other is left out; it needs data/rows.jsonl, see docs/profiles.md"
    ]
    (study / "data").mkdir()
    (study / "data" / "rows.jsonl").touch()
    assert profiles.runs() == {"demo": ["sure"], "other": ["sure", "alone"]}
    assert left_out(["sure"]) == []
