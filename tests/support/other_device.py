"""A second device where there is none: tensors that are said to lie on "cuda", on the CPU.

A tensor's storage is marked where code moves it there or makes it there; what operations make of
marked tensors is marked. An operation between a marked tensor and one that is not, other than a
number, raises as on a GPU; so do numpy's views of marked tensors. Speed, memory and the kernels
themselves are not what this is for.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
# What copies between devices, or takes indices from the CPU, as on a GPU.
BETWEEN = tuple(
    f"aten::{name}" for name in ("copy_", "_to_copy", "_copy_from", "index", "_index_put", "set_")
)
TO_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__}
HOOKS = {torch.Tensor.register_hook, torch.Tensor.register_post_accumulate_grad_hook}


def _is_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


class _Marks(TorchDispatchMode):
    """Carries the marks through every operation, backward ones too."""

    def __init__(self):
        super().__init__()
        self.marked = {}  # {address of a storage: a weak reference, which keeps the address}
        self.purge = 1000

    def has(self, x):
        return x.layout is torch.strided and x.untyped_storage()._cdata in self.marked

    def put(self, x, there):
        storage = x.untyped_storage()
        if not there:
            self.marked.pop(storage._cdata, None)
            return
        self.marked[storage._cdata] = StorageWeakRef(storage)
        if len(self.marked) > self.purge:
            self.marked = {at: x for at, x in self.marked.items() if not x.expired()}
            self.purge = 1000 + 2 * len(self.marked)

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [self.has(x) for x in given]
        name = call._schema.name
        elsewhere = [x for x, t in zip(given, there) if not t and x.dim()]
        if any(there) and elsewhere and not name.startswith(BETWEEN):
            shapes = [(tuple(x.shape), "cuda" if t else "cpu") for x, t in zip(given, there)]
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} {shapes}")
        before = {x.untyped_storage()._cdata for x in given}
        out = call(*args, **kwargs)
        large = [t for x, t in zip(given, there) if x.dim()] or there
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in before:
                self.put(x, any(large))
        return out


class _Device(TorchFunctionMode):
    """What Python code sees and asks for: Tensor.device, .to, .cpu, device=…"""

    def __init__(self, marks):
        super().__init__()
        self.marks = marks

    def __torch_function__(self, call, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        marks = self.marks
        if call == torch.Tensor.device.__get__:
            return GPU if marks.has(args[0]) else call(*args)
        if call == torch.Tensor.is_cuda.__get__:
            return marks.has(args[0])
        if call in TO_NUMPY and marks.has(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if call in (torch.Tensor.cpu, torch.Tensor.cuda):
            return self._moved(args[0], call is torch.Tensor.cuda, {})
        if call is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if call in HOOKS:
            args = (args[0], self._in_backward(args[1]), *args[2:])
        wanted = kwargs.get("device")
        if isinstance(wanted, (str, torch.device)):
            kwargs["device"] = "cpu" if _is_gpu(wanted) else wanted
        out = call(*args, **kwargs)
        if wanted is not None and isinstance(out, torch.Tensor) and out.layout is torch.strided:
            if torch.device(wanted).type != "meta":
                marks.put(out, _is_gpu(wanted))
        elif call in (torch.from_numpy, torch.frombuffer, torch.asarray, torch.tensor):
            if not (call is torch.asarray and isinstance(args[0], torch.Tensor)):
                marks.put(out, False)
        return out

    def _in_backward(self, hook):
        """A hook under this mode, which autograd takes off while it goes backward."""

        def under(*given):
            with _Device(self.marks):
                return hook(*given)

        return under

    def _to(self, x, *args, **kwargs):
        args, where = list(args), kwargs.pop("device", None)
        if args and isinstance(args[0], torch.Tensor):
            like = args.pop(0)
            where, args = (GPU if self.marks.has(like) else like.device), [like.dtype, *args]
        elif args and isinstance(args[0], (str, torch.device)):
            where = args.pop(0)
        elif args and args[0] is None:
            args.pop(0)
        if where is None or torch.device(where).type == "meta" or x.device.type == "meta":
            return x.to(*args, **kwargs) if where is None else x.to(where, *args, **kwargs)
        return self._moved(x, _is_gpu(where), kwargs, *args)

    def _moved(self, x, there, kwargs, *args):
        if self.marks.has(x) == there:
            return x.to("cpu", *args, **kwargs) if args or kwargs else x
        kwargs.pop("copy", None)
        out = x.to("cpu", *args, **kwargs, copy=True)
        self.marks.put(out, there)
        return out


@contextmanager
def other_device():
    """Until the end of the block "cuda" is a device of the kind above."""
    marks = _Marks()
    nothing = mock.patch.multiple(
        torch.cuda,
        is_available=lambda: True,
        synchronize=lambda *_: None,
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda *_: None,
        memory_reserved=lambda *_: 0,
        max_memory_reserved=lambda *_: 0,
        max_memory_allocated=lambda *_: 0,
        mem_get_info=lambda *_: (2**36, 2**36),
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda *_: None,
    )
    with nothing, marks, _Device(marks):
        yield marks
