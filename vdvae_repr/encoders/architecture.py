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
import operator
import os
import re
import sys
import sysconfig
import types
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What every module has; `training` is no option, and what is registered is described by itself. The last is
# what `compile` leaves.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Modules around a network, whose attributes say where and how it is run.
_AROUND = ("torch._dynamo", "torch.nn.parallel")
_PACKAGES = ("torch", "torchvision", "timm", "numpy")
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_HEAP = 1 << 9  # of the flags of a class: it was made by a `class` statement
_DEVICE = re.compile(r"(?:cpu|cuda|mps|xpu)(?::\d+)?")
_BY_VALUE = (bool, int, float, complex, str, bytes)
_BY_REPR = (
    torch.dtype, np.generic, os.PathLike, range, slice,
    operator.itemgetter, operator.attrgetter, operator.methodcaller,
)  # fmt: skip
# What code uses that makes names, as of a method of its own.
_BY_NAME = ("getattr", "vars", "dir", "eval", "exec", "attrgetter", "methodcaller")
_OF_CONSTRUCTION = ("__init__", "reset_parameters", "_reset_parameters", "extra_repr", "__repr__")


class Description:
    """Digests of all that a network computes with, by place, apart from what its `state_dict` holds.

    These are the class of every module, the code of the methods that a pass may come to (that of libraries
    aside), the attributes of modules, and of classes what that code takes, tensors that are not saved, hooks,
    objects and networks that stand in attributes, and what the code uses of the globals of its modules. What
    may change by itself has a digest of its own. The digests are the same in another session, under the same
    version of Python.

    Not seen are values that lie in objects of other libraries, in attributes of scripted modules, in modules
    that a function imports by itself, in files, or in the environment.
    """

    digests: dict[str, str]
    numbers: set[str]
    """Places of tensors and arrays, of several numbers that are not all one, which may have been trained."""

    def __init__(self, net: nn.Module) -> None:
        self.numbers = set()
        self._waiting: deque[tuple[str, Any]] = deque()
        # What has been met, by its id, with the object itself: the id of one that is gone is given anew.
        self._met: dict[int, tuple[str, Any]] = {}
        self._inside: Counter[str] = Counter()  # how many objects have been met at a place
        self._classes: set[type] = set()
        self._globals: dict[int, tuple[int, dict[str, Any], set[str]]] = {}
        # Names that code takes of anything, whether it makes names, and members that it has not taken yet.
        self._taken: set[str] = set()
        self._makes_names = False
        self._members: defaultdict[str, list[tuple[str, Any]]] = defaultdict(list)
        self._add_network("", net, net.state_dict())
        # Of classes of one name, as where a cell of a notebook ran twice, there may be several.
        found: defaultdict[str, set[str]] = defaultdict(set)
        while self._waiting:
            place, value = self._waiting.popleft()
            found[place].add(self._digest(place, value))
        self.digests = {place: " ".join(sorted(digests)) for place, digests in found.items()}

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
            first, _ = self._met.setdefault(id(module), (place, module))
            if first != place:
                self._add(f"{place}: module", first)
                continue
            self._add(f"{place}: class", self._class(type(module)))
            children = [name for name, _ in module.named_children()]
            self._add(f"{place}: modules", children)  # which may run in their order
            if isinstance(module, torch.jit.ScriptModule):
                with suppress(RuntimeError, AttributeError):  # of a module without a forward
                    code, constants = module.code_with_constants
                    self._add(f"{place}: code", [code, dict(constants.const_mapping)])
            around = type(module).__module__.startswith(_AROUND)
            for key, value in vars(module).items():
                if key in _HOOKS:  # which stand under numbers that count all hooks of the session
                    self._add(_join(place, key), list(value.values()))
                elif key not in _OF_EVERY_MODULE and not around:
                    self._add(_join(place, key), value)
        for name, tensor in itertools.chain(
            net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False)
        ):
            if name not in saved:
                self._add(_join(prefix, name), tensor)

    def _class(self, cls: type) -> list[str]:
        """Return what a class and its bases are called; have those described that are of no library."""
        taken: set[str] = set()  # what libraries may take, as `forward`
        for base in cls.__mro__:
            known = _installed if not issubclass(base, nn.Module) else _of_library
            if known(base):
                taken |= vars(base).keys()
            elif base not in self._classes:
                self._classes.add(base)
                for key, value in sorted(vars(base).items()):
                    hidden, inner = key.startswith(("__", "_abc_")), _unwrapped(value)
                    if key in _OF_CONSTRUCTION or (
                        hidden and not isinstance(inner, types.FunctionType)
                    ):
                        continue
                    self._members[key].append((f"class {base.__qualname__}.{key}", inner))
                    if hidden or isinstance(value, property):
                        taken.add(key)
        self._take(taken)
        return [base.__qualname__ for base in cls.__mro__]

    def _take(self, names: Collection[str]) -> None:
        """Have described the members of classes, met and to be met, that bear names which code takes."""
        self._taken.update(names)
        for name in sorted(
            self._members.keys() if self._makes_names else self._taken & self._members.keys()
        ):
            for member in self._members.pop(name):
                self._add(*member)

    def _digest(self, place: str, value: Any) -> str:
        digest = hashlib.sha256()
        for piece in self._pieces(place, value, {}):
            digest.update(f"{len(piece)}:".encode())
            digest.update(piece)
        return digest.hexdigest()

    def _pieces(
        self, place: str, value: Any, seen: dict[int, tuple[int, Any]]
    ) -> Iterator[bytes | memoryview]:
        """Yield bytes that tell a value from others; none of them is an address or an order of a set.

        Args:
            place: where it stands.
            value: anything.
            seen: every object that has been described at this place, with its number, by its id.
        """
        if isinstance(value, torch.device) or (isinstance(value, str) and _DEVICE.fullmatch(value)):
            yield b"device"  # where it is run is none of what it computes
            return
        if isinstance(value, weakref.ProxyTypes):  # of what is alive elsewhere
            yield b"proxy"
            return
        own = not _installed(type(value))
        if value is None or (isinstance(value, _BY_VALUE) and not own):
            yield f"{type(value).__name__} {value!r}".encode(errors="surrogatepass")
            return
        if isinstance(value, _BY_REPR):
            yield repr(value).encode(errors="surrogatepass")
            return
        if id(value) in seen:
            yield f"again {seen[id(value)][0]}".encode()
            return
        seen[id(value)] = len(seen), value
        parts: Iterable[Any] = ()
        if isinstance(value, Enum):
            parts = ("enum", value.name, value.value)
        elif isinstance(value, _BY_VALUE):
            plain = next(kind for kind in _BY_VALUE if isinstance(value, kind))
            yield plain.__repr__(value).encode(errors="surrogatepass")
        elif isinstance(value, Tensor):
            yield from self._of_tensor(place, value)
        elif isinstance(value, np.ndarray):
            yield f"array {value.dtype} {value.shape}".encode()
            if value.dtype.hasobject:
                parts = value.ravel().tolist()
            else:
                yield value.tobytes()
                if value.dtype.kind in "fc" and value.size > 1 and (value != value.flat[0]).any():
                    self.numbers.add(place)
        elif isinstance(value, list | tuple | deque):
            yield f"{type(value).__name__} {len(value)}".encode()
            parts = value
        elif isinstance(value, set | frozenset):
            yield f"set {len(value)}".encode()
            items = f"{place}{{}}"  # one place for all, as they have no order
            yield from sorted(self._digest(items, item).encode() for item in value)
        elif isinstance(value, dict | types.MappingProxyType):
            yield f"mapping {len(value)}".encode()
            held = value if isinstance(value, dict) else dict(value)
            # Of a subclass what it holds, and not what it makes of it.
            parts = itertools.chain.from_iterable(dict.items(held))
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(place, value, seen)
        elif isinstance(value, types.MethodType):
            parts = (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
        elif isinstance(value, re.Pattern):
            parts = (value.pattern, value.flags)
        elif isinstance(value, type):
            parts = ("class", self._class(value))
        elif (inner := _unwrapped(value)) is not value:
            parts = (inner,)
        elif isinstance(value, types.BuiltinMethodType) and not (
            value.__self__ is None or isinstance(value.__self__, types.ModuleType)
        ):
            parts = (value.__name__, value.__self__)
        else:
            own, name = False, None  # the class of an object is described with it
            with suppress(Exception):  # whatever attributes of the user's own may raise
                name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
            yield f"object {type(value).__qualname__} {name if isinstance(name, str) else ''}".encode()
            # Objects are described at places of their own, each once, as they may lead to each other.
            if id(value) not in self._met:
                self._add_object(self._new_place(place, alone=len(seen) == 1), value)
            yield self._met[id(value)][0].encode(errors="surrogatepass")
        for part in parts:
            yield from self._pieces(place, part, seen)
        if own and not isinstance(value, type):
            # What a class of the user's makes of a built-in type.
            for part in (self._class(type(value)), dict(getattr(value, "__dict__", {}))):
                yield from self._pieces(place, part, seen)

    def _new_place(self, place: str, alone: bool) -> str:
        """Return a place for an object that stands at another, alone or as one of several."""
        if alone:
            return place
        self._inside[place] += 1
        return f"{place}[{self._inside[place] - 1}]"

    def _add_object(self, place: str, value: Any) -> None:
        """Have described what tells an object from others of its class."""
        if isinstance(value, nn.Module):
            self._add_network(place, value, ())
            return
        self._met[id(value)] = place, value
        holds_options = isinstance(value, types.SimpleNamespace | argparse.Namespace)
        if _of_library(type(value)) and not holds_options:
            return
        self._add(f"{place}: class", self._class(type(value)))
        state = getattr(value, "__dict__", {})
        attributes = dict(state) if isinstance(state, dict) else {}
        for base in type(value).__mro__:
            for key, member in vars(base).items() if "__slots__" in vars(base) else ():
                if isinstance(member, types.MemberDescriptorType):
                    with suppress(AttributeError):  # which is not set
                        attributes[key] = member.__get__(value)
        for key, attribute in attributes.items():
            self._add(f"{place}.{key}", attribute)

    def _of_tensor(self, place: str, value: Tensor) -> Iterator[bytes | memoryview]:
        if torch.nn.parameter.is_lazy(value):
            yield b"tensor without a shape"
            return
        if value.is_nested:
            for part in value.unbind():
                yield from self._of_tensor(place, part)
            return
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        if not value.is_meta:
            yield dense(value).flatten().view(torch.uint8).numpy().data
        if varies(value):
            self.numbers.add(place)

    def _of_function(
        self, place: str, function: types.FunctionType, seen: dict[int, tuple[int, Any]]
    ) -> Iterator[bytes | memoryview]:
        """Describe a function by its name, and by what it runs where it is of no library."""
        yield f"function {function.__qualname__}".encode()
        if _of_library(function):
            return
        yield from self._of_code(place, function.__code__, function.__doc__)
        yield from self._pieces(place, (function.__defaults__, function.__kwdefaults__), seen)
        for cell in function.__closure__ or ():
            try:
                yield from self._pieces(place, cell.cell_contents, seen)
            except ValueError:  # nothing is there yet
                yield b"empty"
        names, attributes = _names(function.__code__)
        self._makes_names |= not (names | attributes).isdisjoint(_BY_NAME)
        self._take(attributes)
        self._add_globals(function.__globals__, names, attributes)

    def _of_code(
        self, place: str, code: types.CodeType, doc: str | None
    ) -> Iterator[bytes | memoryview]:
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
                if not _installed(used):
                    path = through | {id(namespace)}
                    self._add_globals(vars(used), attributes, attributes, path)
                continue
            known.add(name)
            self._add(f"global {name}{f' {number}' if number else ''}", used)


def dense(value: Tensor) -> Tensor:
    """Return the numbers that a tensor stands for, on the CPU, one after the other in memory."""
    plain = value.detach().dequantize() if value.is_quantized else value.detach().to_dense()
    return plain.cpu().resolve_conj().resolve_neg().contiguous()


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
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            attributes.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, str):  # as of getattr
            attributes.add(constant)
        elif isinstance(constant, types.CodeType):
            inner = _names(constant)
            names |= inner[0]
            attributes |= inner[1]
    return names, attributes


def _home(thing: Any) -> tuple[str, str]:
    """Return the name of the module that a class, function or module is of, and its file, if any."""
    name = str(thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__)
    return name, getattr(sys.modules.get(name), "__file__", None) or ""


def _of_library(thing: Any) -> bool:
    """Whether a class, function or module is known by its name alone, as PyTorch's and Python's own are."""
    name, file = _home(thing)
    if name == "builtins":  # so is what code without a module of its own makes
        heap = isinstance(thing, type) and bool(thing.__flags__ & _HEAP)
        return not (heap or isinstance(thing, types.FunctionType))
    top = name.partition(".")[0]
    if top in _PACKAGES or top == "__main__" or top not in sys.stdlib_module_names:
        return top in _PACKAGES
    # A person's own module may be called as one of Python's, as `code` or `profile`.
    return file.startswith(_STANDARD) if file else name in sys.modules


def _installed(thing: Any) -> bool:
    """Whether a class, function or module is of a library, or was installed as one."""
    folders = _home(thing)[1].replace("\\", "/").split("/")
    return _of_library(thing) or not {"site-packages", "dist-packages"}.isdisjoint(folders)
