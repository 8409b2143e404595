"""What a result depends on, as texts that tell it from another one in any run.

Tensors by their numbers, layers by their shapes and heads, functions by what they compute: never by
a name alone, nor by a place in memory.
"""

import hashlib
import json
import sys
import sysconfig
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msif.core.layers import Layer

PLAIN = (type(None), bool, int, float, complex, str, bytes)
# Code below these folders is known by its name; so is this package's.
LIBRARIES = tuple(sysconfig.get_paths()[x] for x in ("stdlib", "purelib", "platlib"))
OWN = str(Path(__file__).parents[1])


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of {name: tensor}: names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        sha.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def layers_key(layers: Iterable[Layer]) -> list[Any]:
    """Layers as JSON values: names, sizes and the rows of every block."""
    return [
        [x.name, x.in_features, x.out_features, x.bias, None if x.rows is None else x.rows.tolist()]
        for x in layers
    ]


def function_digest(function: Callable[..., Any]) -> str:
    """A function's name and a sha256 of all that it computes with: its code, defaults, arguments of
    a `partial`, the object it is a method of, variables of the scopes around it, and global values,
    functions and classes of the same user.

    The same in every run of one version of Python. Functions of libraries count by their names.
    Raises ValueError for one that holds what cannot be told from one run to the next, such as an
    open file.
    """
    inner = getattr(function, "func", function)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    try:
        return f"{name} {_digest(function, {})}"
    except _Unknown as error:
        raise ValueError(
            f"{name} holds a {error}, which cannot be told from another one in a later run: let it "
            f"hold numbers, texts, tensors, models and functions alone"
        ) from None


def plain_digest(x: Any) -> str | None:
    """A digest of numbers, tensors, texts, functions, collections and records of such; None for
    what may hold something else, such as modules and open files."""
    try:
        return _digest(x, {}) if _plain(x) else None
    except _Unknown:
        return None


def digest_of_any(x: Any, known: Iterable[tuple[Any, str]]) -> tuple[str, list[str]]:
    """A digest of x whatever it holds, and the kinds of what cannot be told from one run to the
    next, such as open files.

    Each of these counts as itself: with one, the digest is another in any other process. known:
    objects that texts stand for in place of what they hold, such as the modules of a model by
    their names.
    """
    kinds: list[str] = []

    def unknown(y):
        kinds.append(type(y).__name__)
        return _token(y)

    return _digest(x, {id(y): (y, text) for y, text in known}, unknown), kinds


def is_of_user(x: Any) -> bool:
    """Is it a function, method or `partial` of one, in code that is of no installed package?"""
    while isinstance(x, partial | MethodType):
        x = x.func if isinstance(x, partial) else x.__func__
    return isinstance(x, FunctionType) and not _of_library(x.__code__.co_filename)


def is_of_library(kind: type) -> bool:
    """Is a class of an installed package, and known by its name?"""
    return _of_library(_file_of(kind))


def _plain(x, depth=8):
    def each(parts):
        return depth > 0 and all(_plain(part, depth - 1) for part in parts)

    numbers = (np.generic, np.ndarray, Tensor)
    if isinstance(x, (*PLAIN, *numbers, Enum, torch.dtype, BuiltinFunctionType)):
        return True
    if isinstance(x, FunctionType):
        held = [y for cell in x.__closure__ or () for y in _filled(cell)]
        return each((*(x.__defaults__ or ()), *held))
    if isinstance(x, partial):
        return each((x.func, *x.args, *x.keywords.values()))
    if isinstance(x, Mapping):
        return each((*x, *x.values()))
    if isinstance(x, list | tuple | set | frozenset):
        return each(x)
    record = is_dataclass(x) or isinstance(x, SimpleNamespace)
    return record and not isinstance(x, type) and each(vars(x).values())


class _Unknown(Exception):
    pass


def _refuse(x):
    raise _Unknown(type(x).__name__)


# {id: (what gives the object while it is there, its token)}, of objects that count as themselves.
_tokens: dict[int, tuple[Callable[[], Any], str]] = {}


def _token(x):
    """A text that no other object has, nor one of another process."""
    there, token = _tokens.get(id(x), (lambda: None, ""))
    if there() is not x:  # a new one, which may lie where another lay
        token = uuid.uuid4().hex
        try:
            _tokens[id(x)] = weakref.ref(x), token
        except TypeError:  # one that must be held to be known again
            _tokens[id(x)] = lambda: x, token
    return token


def _digest(x, seen, unknown=_refuse):
    """A text that is equal for equal x alone. seen: {id: (x, its digest, or where it was met)}.
    unknown: gives the text of what cannot be told from one run to the next, or raises."""
    if id(x) not in seen:
        seen[id(x)] = x, f"a cycle to {len(seen)}"
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        found = json.dumps([kind, _parts(x, seen, unknown)])
        seen[id(x)] = x, hashlib.sha256(found.encode()).hexdigest()
    return seen[id(x)][1]


def _parts(x, seen, unknown):
    """What makes x what it is, as JSON values."""

    def each(parts):
        return [_digest(part, seen, unknown) for part in parts]

    match x:
        case None | bool() | int() | float() | complex() | str() | bytes() if type(x) in PLAIN:
            return repr(x)
        case Tensor() if x.layout == torch.strided and not x.is_meta:
            return tensors_digest({"": x})
        case ModuleType():
            return x.__name__
        case BuiltinFunctionType():
            return x.__qualname__
        case torch.dtype() | torch.device():
            return str(x)
        case CodeType():
            held = x.co_names, x.co_varnames, x.co_freevars, x.co_argcount, x.co_flags
            return [x.co_code.hex(), *each((held, x.co_consts))]
        case FunctionType():
            return _function(x, each)
        case type():
            return [f"{x.__module__}.{x.__qualname__}", *each(_own(x))]
        case MethodType():
            return each((x.__func__, x.__self__))
        case partial():
            return each((x.func, x.args, x.keywords))
        case property() | classmethod() | staticmethod():
            return each([getattr(x, k, None) for k in ("fget", "__func__")])
        case Mapping():
            return [each(item) for item in x.items()]
        case list() | tuple():
            return each(x)
        case set() | frozenset():
            return sorted(each(x))
    try:  # as it would be pickled, which is never done
        found = x.__reduce_ex__(4)
    except Exception:
        return unknown(x)
    return found if isinstance(found, str) else each(map(_listed, found))


def _listed(x):
    """The items that an object adds to itself come as iterators."""
    return list(x) if isinstance(x, Iterator) else x


def _function(x, each):
    """Where it is defined, and what it holds; of the user's own also what it does."""
    held = [f"{x.__module__}.{x.__qualname__}", each((x.__defaults__, x.__kwdefaults__))]
    held.append([each(_filled(cell)) for cell in x.__closure__ or ()])
    if _of_library(x.__code__.co_filename):
        return held
    used = sorted(_names(x.__code__) & x.__globals__.keys())
    return [*held, used, each((x.__code__, *(x.__globals__[name] for name in used)))]


def _names(code):
    """All names that a function's code and the functions in it look up."""
    inner = [_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    return set(code.co_names).union(*inner)


def _filled(cell):
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that is not there yet
        return []


def _file_of(x):
    return getattr(sys.modules.get(x.__module__), "__file__", None) or ""


def _of_library(file):
    return file.startswith((*LIBRARIES, OWN, "<frozen"))


def _own(x):
    """What a user's class defines and is based on, less what Python adds."""
    if _of_library(_file_of(x)):
        return []
    items = sorted(vars(x).items())
    return [x.__bases__, *(v for k, v in items if k[:2] != "__" or isinstance(v, FunctionType))]
