"""What a network of the user's computes, apart from its weights: its modules, their options and their code.

Two networks may have the same weights and differ in an activation function, in a plain attribute as
`self.scale`, or in what `forward` does with them. A store must not take one for the other.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What every module has; `training` is no option, and what is registered is described by itself.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_LIBRARIES = (sys.stdlib_module_names - {"__main__"}) | {"torch", "torchvision", "timm", "numpy"}
# Of what a function finds among the globals of its module; classes and modules are known by their names.
_USED = (
    bool, int, float, str, tuple, list, dict, Tensor, np.ndarray, types.FunctionType, functools.partial,
)  # fmt: skip
_OF_CONSTRUCTION = ("__init__", "reset_parameters", "_reset_parameters", "extra_repr", "__repr__")


def describe_network(net: nn.Module) -> dict[str, str]:
    """Return digests of all that a network computes with, by place, apart from what its `state_dict` holds.

    These are the class of every module and the code of its methods (that of libraries aside), its plain
    attributes, its buffers that are not saved, its hooks, and the functions and constants of modules that
    this code uses. The digests are the same in another session, under the same version of Python.

    Not seen are values that lie in objects of other libraries, in attributes of scripted modules, in files,
    or in the environment.
    """
    saved = set(net.state_dict())
    digests = {}
    for path, module in net.named_modules(remove_duplicate=False):
        digests[f"{path} class"] = _digest(type(module))
        if isinstance(module, torch.jit.ScriptModule):
            with suppress(RuntimeError, AttributeError):  # of a module without a forward
                code, constants = module.code_with_constants
                digests[f"{path} code"] = _digest([code, dict(constants.const_mapping)])
        for key, value in vars(module).items():
            if key not in _OF_EVERY_MODULE or key in _HOOKS:
                # Hooks stand under numbers that count all hooks of the session.
                value = list(value.values()) if key in _HOOKS else value
                digests[f"{path} {key}"] = _digest(value)
    for path, buffer in net.named_buffers(remove_duplicate=False):
        if path not in saved:
            digests[f"{path} buffer"] = _digest(buffer)
    return digests


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(value, {}):
        digest.update(f"{len(piece)}:".encode() + piece)
    return digest.hexdigest()


def _pieces(value: Any, seen: dict[int, int]) -> Iterator[bytes]:
    """Yield bytes that tell a value from others; none of them is an address or an order of a set.

    Args:
        value: anything.
        seen: the place of every object that has been described, by its id.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Enum):
        yield f"{type(value).__name__} {value!r}".encode(errors="surrogatepass")
        return
    if isinstance(value, torch.dtype | torch.device | np.generic | os.PathLike | range | slice):
        yield repr(value).encode(errors="surrogatepass")
        return
    if id(value) in seen:
        yield f"again {seen[id(value)]}".encode()
        return
    seen[id(value)] = len(seen)
    if isinstance(value, Tensor):
        yield from _of_tensor(value)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"array {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, list | tuple | deque | np.ndarray):
        yield f"{type(value).__name__} {len(value)}".encode()
        for item in value:
            yield from _pieces(item, seen)
    elif isinstance(value, set | frozenset):
        yield f"set {len(value)}".encode()
        yield from sorted(b" ".join(_pieces(item, {})) for item in value)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for item in value.items():
            yield from _pieces(item, seen)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, seen)
    elif isinstance(value, types.MethodType):
        yield from _pieces((value.__func__, value.__self__), seen)
    elif isinstance(value, functools.partial):
        yield from _pieces((value.func, value.args, value.keywords), seen)
    elif isinstance(value, type):
        yield from _of_class(value, seen)
    else:
        yield from _of_object(value, seen)


def _of_tensor(value: Tensor) -> Iterator[bytes]:
    yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
    if not value.is_meta:
        dense = value.detach().dequantize() if value.is_quantized else value.detach().to_dense()
        yield dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _of_object(value: Any, seen: dict[int, int]) -> Iterator[bytes]:
    """Describe a module that is not registered, or any other object."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    yield f"object {type(value).__qualname__} {name if isinstance(name, str) else ''}".encode()
    if isinstance(value, nn.Module):
        yield from _pieces(describe_network(value), seen)
        yield from _pieces(dict(value.state_dict()), seen)
    elif isinstance(value, types.SimpleNamespace | argparse.Namespace):
        yield from _pieces(vars(value), seen)
    elif not _of_library(type(value)):
        yield from _pieces(type(value), seen)
        yield from _pieces(getattr(value, "__dict__", {}), seen)


def _of_class(cls: type, seen: dict[int, int]) -> Iterator[bytes]:
    """Describe a class by its name, and by its methods and constants where it is of no library."""
    for base in cls.__mro__:
        yield f"class {base.__qualname__}".encode()
        if _of_library(base):
            continue
        for key, value in sorted(vars(base).items()):
            value = getattr(value, "__func__", value)  # of a static or class method
            value = getattr(value, "fget", value)  # of a property
            plain = isinstance(value, bool | int | float | str | tuple | Tensor)
            function = isinstance(value, types.FunctionType) and key not in _OF_CONSTRUCTION
            if function or (plain and not key.startswith("__")):
                yield key.encode()
                yield from _pieces(value, seen)


def _of_function(function: types.FunctionType, seen: dict[int, int]) -> Iterator[bytes]:
    """Describe a function by its name, and by what it runs where it is of no library."""
    yield f"function {function.__qualname__}".encode()
    if _of_library(function):
        return
    yield from _of_code(function.__code__, function.__doc__, seen)
    yield from _pieces((function.__defaults__, function.__kwdefaults__), seen)
    for cell in function.__closure__ or ():
        try:
            yield from _pieces(cell.cell_contents, seen)
        except ValueError:  # nothing is there yet
            yield b"empty"
    for name in _names(function.__code__):
        used = function.__globals__.get(name)
        if isinstance(used, _USED):
            yield name.encode()
            yield from _pieces(used, seen)


def _of_code(code: types.CodeType, doc: str | None, seen: dict[int, int]) -> Iterator[bytes]:
    yield code.co_code
    yield from _pieces((code.co_names, code.co_varnames, code.co_freevars), {})
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant, None, seen)
        elif doc is None or constant != doc:
            yield from _pieces(constant, {})


def _names(code: types.CodeType) -> list[str]:
    """Return the names of globals that a function, or one inside it, may use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= set(_names(constant))
    return sorted(names)


def _of_library(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] in _LIBRARIES
