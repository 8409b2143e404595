"""Where there can be no model, that is said at once."""

import pytest

from msif.core.models import load_model


@pytest.mark.parametrize("source", ["/no/where", "./none", "no where", "a/b/c"])
def test_what_is_no_hub_id_is_not_looked_for_there(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", pytest.fail)
    with pytest.raises(OSError, match=f"from '{source}': there is no such folder; expected a hub"):
        load_model(source)


def test_the_hub_is_asked_once(monkeypatch, tmp_path):
    asked = []

    def away(url, timeout):
        asked.append(url)
        raise RuntimeError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", away)
    with pytest.raises(OSError, match="the hub cannot be reached .*no network.*config.json"):
        load_model("somebody/some-model")
    assert len(asked) == 1
    (tmp_path / "my").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="'my/bse': there is no such folder"):
        load_model("my/bse")
    assert len(asked) == 1
