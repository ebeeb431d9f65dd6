"""What a network of the user's computes, apart from its weights: its modules, their options and their code.

Two networks may have the same weights and differ in an activation function, in a plain attribute as
`self.scale`, or in what `forward` does with them. A store must not take one for the other.
"""

from __future__ import annotations

import argparse
import dis
import functools
import hashlib
import itertools
import os
import sys
import types
from collections import deque
from collections.abc import Collection, Iterator, Mapping
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
# Of what a function finds among the globals of its module; others are looked at where no library made them.
_USED = (
    bool, int, float, str, tuple, list, deque, set, frozenset, Mapping, Tensor, np.ndarray, nn.Module,
    types.FunctionType, functools.partial, types.SimpleNamespace, argparse.Namespace,
)  # fmt: skip
_OF_CONSTRUCTION = ("__init__", "reset_parameters", "_reset_parameters", "extra_repr", "__repr__")


class Description:
    """Digests of all that a network computes with, by place, apart from what its `state_dict` holds.

    These are the class of every module and the code of its methods (that of libraries aside), the
    attributes of classes and modules, tensors that are not saved, hooks, networks that stand in attributes
    without being registered, and what this code uses of the globals of its modules. What may change by itself
    has a digest of its own. The digests are the same in another session, under the same version of Python.

    Not seen are values that lie in objects of other libraries, in attributes of scripted modules, in modules
    that a function imports by itself, in files, or in the environment.
    """

    digests: dict[str, str]
    numbers: set[str]
    """Places of tensors and arrays, of several numbers that are not all one, which may have been trained."""

    def __init__(self, net: nn.Module) -> None:
        self.digests, self.numbers = {}, set()
        self._waiting: deque[tuple[str, Any]] = deque()
        # What has been met, by its id, with the object itself: the id of one that is gone is given anew.
        self._modules: dict[int, tuple[str, nn.Module]] = {}
        self._classes: dict[type, str] = {}
        self._globals: dict[int, tuple[int, dict[str, Any], set[str]]] = {}
        self._add_network("", net, net.state_dict())
        while self._waiting:
            place, value = self._waiting.popleft()
            self.digests[place] = self._digest(place, value)

    def _add(self, place: str, value: Any) -> None:
        """Have a value described; of a dictionary each item by itself, as one may be a counter."""
        if type(value) is dict and all(isinstance(key, str) for key in value):
            self._waiting.append((f"{place}: keys", list(value)))
            for key, item in value.items():
                self._waiting.append((f"{place}[{key!r}]", item))
        else:
            self._waiting.append((place, value))

    def _add_network(self, prefix: str, net: nn.Module, saved: Collection[str]) -> None:
        for path, module in net.named_modules(remove_duplicate=False):
            place = _join(prefix, path)
            first, _ = self._modules.setdefault(id(module), (place, module))
            if first != place:
                self._add(f"{place}: module", first)
                continue
            self._add(f"{place}: class", self._class(type(module)))
            if isinstance(module, torch.jit.ScriptModule):
                with suppress(RuntimeError, AttributeError):  # of a module without a forward
                    code, constants = module.code_with_constants
                    self._add(f"{place}: code", [code, dict(constants.const_mapping)])
            for key, value in vars(module).items():
                if key in _HOOKS:  # which stand under numbers that count all hooks of the session
                    self._add(_join(place, key), list(value.values()))
                elif key not in _OF_EVERY_MODULE:
                    self._add(_join(place, key), value)
        for name, tensor in itertools.chain(
            net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False)
        ):
            if name not in saved:
                self._add(_join(prefix, name), tensor)

    def _class(self, cls: type) -> str:
        """Return what a class is called here; have its members described where it is of no library."""
        if _of_library(cls.__module__):
            return cls.__qualname__
        if cls not in self._classes:
            alike = sum(other.__qualname__ == cls.__qualname__ for other in self._classes)
            self._classes[cls] = name = f"{cls.__qualname__}{f' {alike}' if alike else ''}"
            self._add(f"class {name}", [self._class(base) for base in cls.__mro__[1:]])
            for key, value in sorted(vars(cls).items()):
                value = _unwrapped(value)
                if key not in _OF_CONSTRUCTION and (
                    isinstance(value, types.FunctionType) or not key.startswith(("__", "_abc_"))
                ):
                    self._add(f"class {name}.{key}", value)
        return self._classes[cls]

    def _digest(self, place: str, value: Any) -> str:
        digest = hashlib.sha256()
        for piece in self._pieces(place, value, {}):
            digest.update(f"{len(piece)}:".encode() + piece)
        return digest.hexdigest()

    def _pieces(self, place: str, value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
        """Yield bytes that tell a value from others; none of them is an address or an order of a set.

        Args:
            place: where it stands.
            value: anything.
            seen: every object that has been described at this place, with its number, by its id.
        """
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | Enum):
            yield f"{type(value).__name__} {value!r}".encode(errors="surrogatepass")
            return
        if isinstance(value, torch.dtype | torch.device | np.generic | os.PathLike | range | slice):
            yield repr(value).encode(errors="surrogatepass")
            return
        if id(value) in seen:
            yield f"again {seen[id(value)][0]}".encode()
            return
        seen[id(value)] = len(seen), value
        parts: Iterator[Any] | Collection[Any] = ()
        if isinstance(value, Tensor):
            yield from self._of_tensor(place, value)
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            yield (
                f"array {value.dtype} {value.shape}".encode()
                + np.ascontiguousarray(value).tobytes()
            )
            if value.dtype.kind in "fc" and value.size > 1 and (value != value.flat[0]).any():
                self.numbers.add(place)
        elif isinstance(value, list | tuple | deque | np.ndarray):
            yield f"{type(value).__name__} {len(value)}".encode()
            parts = value
        elif isinstance(value, set | frozenset):
            yield f"set {len(value)}".encode()
            yield from sorted(self._digest(place, item).encode() for item in value)
        elif isinstance(value, Mapping):
            yield f"mapping {len(value)}".encode()
            parts = itertools.chain.from_iterable(value.items())
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(place, value, seen)
        elif isinstance(value, types.MethodType):
            parts = (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
        elif isinstance(value, type):
            yield f"class {self._class(value)}".encode()
        else:
            name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
            yield f"object {type(value).__qualname__} {name if isinstance(name, str) else ''}".encode()
            parts = self._of_object(place, value)
        for part in parts:
            yield from self._pieces(place, part, seen)

    def _of_tensor(self, place: str, value: Tensor) -> Iterator[bytes]:
        if torch.nn.parameter.is_lazy(value):
            yield b"tensor without a shape"
            return
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        if not value.is_meta:
            dense = value.detach().dequantize() if value.is_quantized else value.detach().to_dense()
            yield dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if varies(value):
            self.numbers.add(place)

    def _of_object(self, place: str, value: Any) -> Iterator[Any]:
        """Yield what tells an object from others of its class."""
        if isinstance(value, nn.Module):
            if id(value) not in self._modules:
                nested = (f"{place}[{n}]" for n in itertools.count())
                known = {where for where, _ in self._modules.values()}
                self._add_network(next(name for name in nested if name not in known), value, ())
            yield self._modules[id(value)][0]
        elif isinstance(value, types.SimpleNamespace | argparse.Namespace):
            yield vars(value)
        elif not _of_library(type(value).__module__):
            yield self._class(type(value))
            yield getattr(value, "__dict__", {})
            for base in type(value).__mro__:
                for member in vars(base).values():
                    if isinstance(member, types.MemberDescriptorType):  # of `__slots__`
                        with suppress(AttributeError):  # which is not set
                            yield member.__get__(value)
        elif (inner := _unwrapped(value)) is not value:
            yield inner

    def _of_function(
        self, place: str, function: types.FunctionType, seen: dict[int, tuple[int, Any]]
    ) -> Iterator[bytes]:
        """Describe a function by its name, and by what it runs where it is of no library."""
        yield f"function {function.__qualname__}".encode()
        if _of_library(function.__module__):
            return
        yield from self._of_code(place, function.__code__, function.__doc__)
        yield from self._pieces(place, (function.__defaults__, function.__kwdefaults__), seen)
        for cell in function.__closure__ or ():
            try:
                yield from self._pieces(place, cell.cell_contents, seen)
            except ValueError:  # nothing is there yet
                yield b"empty"
        self._add_globals(function.__globals__, *_names(function.__code__))

    def _of_code(self, place: str, code: types.CodeType, doc: str | None) -> Iterator[bytes]:
        yield code.co_code
        yield from self._pieces(place, (code.co_names, code.co_varnames, code.co_freevars), {})
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self._of_code(place, constant, None)
            elif doc is None or constant != doc:
                yield from self._pieces(place, constant, {})

    def _add_globals(
        self,
        namespace: dict[str, Any],
        names: set[str],
        attributes: set[str],
        through: frozenset[int] = frozenset(),
    ) -> None:
        """Have described what a function uses of its module's globals, and of modules among these.

        Args:
            namespace: the globals.
            names: of those used.
            attributes: that the function takes of anything, so maybe of modules.
            through: ids of the namespaces that led here, as modules may hold each other.
        """
        if id(namespace) in through:
            return
        number, _, known = self._globals.setdefault(
            id(namespace), (len(self._globals), namespace, set())
        )
        for name in sorted(names - known & namespace.keys()):
            used = namespace.get(name)
            if isinstance(used, types.ModuleType):
                if not _installed(used.__name__):
                    path = through | {id(namespace)}
                    self._add_globals(vars(used), attributes, attributes, path)
                continue
            known.add(name)
            own = used if isinstance(used, type) else type(used)
            if (
                isinstance(used, _USED)
                or not _installed(own.__module__)
                or _unwrapped(used) is not used
            ):
                self._add(f"global {name}{f' {number}' if number else ''}", used)


def varies(value: Any) -> bool:
    """Whether a value is a tensor of floating point that holds several numbers, not all of them one."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
        return False
    several = (value.is_floating_point() or value.is_complex()) and value.numel() > 1
    return several and bool((value != value.flatten()[0]).any())


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _unwrapped(value: Any) -> Any:
    """Return the function that a method of a class, a property or a cache stands for; else the value."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    if isinstance(value, functools.cached_property):
        return value.func
    cached = isinstance(value, functools._lru_cache_wrapper)
    return value.__wrapped__ if cached else value


def _names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Return the names of globals and of attributes that a function, or one inside it, uses."""
    names: set[str] = set()
    attributes: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names(constant)
            names |= inner[0]
            attributes |= inner[1]
    return names, attributes


def _of_library(module: Any) -> bool:
    """Whether code of a module of this name is known by names alone."""
    return str(module).partition(".")[0] in _LIBRARIES


def _installed(module: Any) -> bool:
    """Whether a module is of a library, or was installed as one."""
    if _of_library(module):
        return True
    file = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(file.replace("\\", "/").split("/")))
