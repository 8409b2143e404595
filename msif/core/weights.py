"""The files in which a model's weights are published.

safetensors where there are any. Many fine-tunes carry only `pytorch_model.bin`, a pickle: that is
read through torch's weights_only=True unpickler, which makes tensors and plain containers and
refuses all else, at the revision asked for. Never a full pickle, which can run any code; and never
what a service has converted, which is another revision.
"""

import contextlib
import errno
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils.hub import has_file

EXPECTED = "config.json and *.safetensors, or pytorch_model.bin"
_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
# Buffers of older classes, each made by the class itself from the configuration: causal masks,
# rotary and sinusoidal tables, numbers of positions. Many published checkpoints still have them.
_OLD_BUFFERS = re.compile(
    r"(^|\.)(attn(\.attention)?\.bias|(causal_mask|masked_bias|inv_freq|(cos|sin)_cached)"
    r"|embed_positions(\.weights)?|position_ids|decoder\.version)$"
).search
_CONVERT = "DISABLE_SAFETENSORS_CONVERSION"  # of transformers, which asks a service otherwise

_UNREADABLE = (pickle.UnpicklingError, EOFError, AttributeError, KeyError, OSError, RuntimeError)

_log = logging.getLogger(__name__)


class Refused(OSError):
    """Pickled weights that are not read."""


def pickled(source: str | Path, revision: str | None = None) -> str | None:
    """The file of a source's pickled weights, or the index of its shards, if it has these and none
    in safetensors; else None."""
    for name in (*_SAFE, *_PICKLED):
        with contextlib.suppress(OSError, ValueError):  # no such source: whoever loads it says so
            if has_file(str(source), name, revision=revision):
                return None if name in _SAFE else name
    return None


def files_of(names: Iterable[str]) -> list[str]:
    """Which of a source's files hold its weights: *.safetensors, else the pickle or its shards."""
    names = list(names)
    safe = [x for x in names if x.endswith(".safetensors")]
    return safe or [x for x in names if _SHARD.fullmatch(x)]


def unread(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Of the tensors that a checkpoint has and a model has not, those of parts that the model has:
    a bias of a layer without one, a scale beside a weight, a further block.

    Without them a part computes something else than was published. Not so without a part that the
    model lacks as a whole, at its root or in its body (a vision tower, a head of another task), nor
    without buffers that the model makes itself.
    """
    body = model.base_model_prefix
    modules = {name for name, _ in model.named_modules()} - {"", body}
    buffers = {name for name, _ in model.named_buffers()}

    def lost(name):
        full = name, f"{body}.{name}"  # a checkpoint of the body alone leaves its name out
        if _OLD_BUFFERS(name) or buffers.intersection(full):
            return False
        return not modules.isdisjoint(x for y in full for x in _parents(y))

    return sorted(filter(lost, names))


def _parents(name):
    """Names of the modules that a tensor would be in: a.b.c -> a.b, a."""
    while name := name.rpartition(".")[0]:
        yield name


@contextlib.contextmanager
def reading(source: str | Path, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """Options of `from_pretrained`, which is to be called inside.

    Where the weights are pickled, the log says so. Raises Refused, in one sentence, for a pickle
    that asks for anything but tensors, and for one that is damaged.
    """
    file = pickled(source, revision)
    if file:
        _log.warning(
            "%s has its weights pickled (%s), not in safetensors: read by torch's "
            "weights_only=True unpickler, tensors alone",
            source,
            file,
        )
    before = os.environ.get(_CONVERT)
    os.environ[_CONVERT] = "1"
    try:
        yield {"use_safetensors": not file, "weights_only": True}
    except _UNREADABLE as error:
        if not file or (isinstance(error, OSError) and error.errno in (None, errno.ENOENT)):
            raise
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"they ask for {asked[1]}" if asked else "they are damaged, or no state dict"
        raise Refused(
            f"the pickled weights of {str(source)!r} ({file}) are refused, as {what}: only tensors "
            f"are read of a pickle, which can run any code; give a revision or a folder with "
            f"*.safetensors"
        ) from error
    finally:
        if before is None:
            del os.environ[_CONVERT]
        else:
            os.environ[_CONVERT] = before
