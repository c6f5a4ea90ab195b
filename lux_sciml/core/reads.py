"""What a function reads besides its arguments, as a value: where it is equal, so are the function's answers."""

import collections
import dis
import enum
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Hashable, Iterable
from typing import Any, Generic, NamedTuple

import equinox as eqx
import jax
import numpy as np

from .._compat import renew_constants
from .._tree import is_traced
from ..components import ComponentVector, Layout
from .constant import Constant
from .layer import Layer
from .static import FrozenDict, fields_of

# Libraries whose functions depend on their arguments, their closures and JAX's switches only.
LIBRARIES = {
    *("jax", "jaxlib", "numpy", "scipy", "lux_sciml", "equinox", "diffrax", "optimistix", "lineax", "optax"),
    *("jaxtyping", "beartype", "builtins", "math", "cmath", "operator", "functools", "itertools", "collections"),
    *("typing", "types", "dataclasses", "enum", "abc", "contextlib", "inspect", "numbers", "fractions", "string", "re"),
    "warnings",
}
_NOT_SO = ("numpy.random", "scipy.io", "scipy.datasets")  # what in them depends on random states, and on files
# What in them, and in Python, does not: files, settings, and names that the code does not show.
OPAQUE = {
    *("compile", "delattr", "dir", "eval", "exec", "getattr", "globals", "id", "input", "locals", "open", "setattr"),
    *("vars", "__import__", "breakpoint", "load", "loadtxt", "genfromtxt", "fromfile", "fromregex", "memmap"),
    *("load_into", "load_npz", "open_memmap", "tree_deserialise_leaves", "DataSource", "geterr", "get_printoptions"),
    *("currentframe", "getattr_static", "getclosurevars", "getmembers", "getmembers_static"),
}
OPAQUE_ATTRIBUTES = {"__globals__", "__builtins__", "__subclasses__", "f_globals", "f_locals"}
MOST = 20_000  # objects to look at: beyond, tracing is cheaper


class _Names(NamedTuple):
    """The attributes that a function's code reads, of whatever it may be."""

    read: frozenset[str]
    bare: frozenset[str]  # variables and attributes that it does not only read attributes of

    def of(self, name: str) -> "_Names":
        """What is known to be read of the module that stands under a name: nothing, where it is passed on."""
        return _NO_NAMES if name in self.bare else self


_NO_NAMES = _Names(frozenset(), frozenset())


class Reads(NamedTuple):
    """What a function reads.

    * `known`: whether the other parts are all that it can read; if not, `key` is equal to nothing;
    * `key`: everything but the arrays that the function itself reads;
    * `arrays`: these arrays, JAX's by identity and NumPy's by content;
    * `inner`: the parts of `key` that functions inside it may read: these JAX may have traced before, and keep.
    """

    known: bool
    key: Hashable
    arrays: tuple[Hashable, ...]
    inner: frozenset[Hashable]


class Same:
    """An object, compared by identity, and held, so that no other one takes its place in memory."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def reads(function: Any, *beside: Any) -> Reads:
    """What a call of `function` can read, and the functions and values `beside` it, as they are now.

    Follows closures, the globals that code names, defaults, attributes, bound objects, containers, layers and classes,
    and the functions found there. Containers and objects count by content, so that a change in place is seen; a list
    that is only appended to is not read. Unknown are random numbers, clocks, files, objects written in C, and code that
    makes up the names it reads.
    """
    walk = _RootWalk(function)
    try:
        key: Hashable = (walk.key(function), *[walk.within(x) for x in beside])
    except (_Unknown, RecursionError):
        return Reads(False, object(), (), frozenset())
    return Reads(True, key, tuple(walk.arrays), frozenset(walk.inner))


def reading(x: Any) -> object | None:
    """One object for what the functions in `x` read now: where it is another one, what was traced may not be so.

    For what is traced inside a function that JAX keeps by `x` itself. It is `None` where nothing can change. What
    cannot be known counts as it was.
    """
    walk = _SeenWalk()
    try:
        key = walk.key(x)
    except RecursionError:
        return None
    return None if walk.lasting else _reading(key)


@functools.lru_cache(4096)
def _reading(key: Hashable) -> object:
    return object()


def together(a: Reads, b: Reads) -> Reads:
    """What two functions read."""
    return Reads(a.known and b.known, (a.key, b.key), a.arrays + b.arrays, a.inner | b.inner)


class _Unknown(Exception):
    """Something whose value cannot be known: no more needs to be looked at."""


class _Walk:
    """Values of objects: each by its type, and by what is in it, in the order of a walk through them."""

    def __init__(self) -> None:
        self.lasting = True  # nothing on the way can change
        self.seen: dict[Hashable, int] = {}
        self.held: list[Any] = []  # what was made on the way: its id must not be used again

    def unknown(self) -> Hashable:
        raise _Unknown

    def key(self, x: Any, names: "_Names" = _NO_NAMES) -> Hashable:
        """The value of `x`; `names` are the attributes that code reads, of a module."""
        kind = type(x)
        if kind in _EXACT or isinstance(x, np.generic | np.dtype):
            return _exact(x)
        if isinstance(x, jax.Array | np.ndarray):
            return self.array(x)
        place = (id(x), names)
        if place in self.seen:
            return ("seen", self.seen[place])
        if len(self.seen) > MOST:
            return self.unknown()
        self.seen[place] = len(self.seen)
        self.held.append(x)
        return _method(kind)(self, x, names)

    def keys(self, xs: Iterable[Any]) -> Hashable:
        return tuple([self.key(x) for x in xs])

    # --- values -----------------------------------------------------------------------------------------------

    def array(self, x: Any) -> Hashable:
        if is_traced(x) or getattr(x.dtype, "hasobject", False) or (isinstance(x, jax.Array) and x.is_deleted()):
            return self.unknown()
        if isinstance(x, jax.Array):
            return Same(x)
        renew_constants(x)
        plain = x.view(np.ndarray)
        beside = None if type(x) is np.ndarray else self.instance(x, None)  # masks, and what a user's class adds
        return (type(x), x.dtype, x.shape, hashlib.sha256(plain.tobytes()).digest(), beside)

    def sequence(self, x: Any, _: Any) -> Hashable:
        base: Any = next(kind for kind in _CONTAINERS if isinstance(x, kind))
        return (self.container(x), self.keys(base.__iter__(x)))

    def mapping(self, x: Any, _: Any) -> Hashable:
        base: Any = next((kind for kind in (collections.OrderedDict, dict) if isinstance(x, kind)), type(x))
        items = list(base.items(x))
        default = self.key(x.default_factory) if isinstance(x, collections.defaultdict) else None
        return (self.container(x), default, self.keys(key for key, _ in items), self.keys(item for _, item in items))

    def container(self, x: Any) -> Hashable:
        """What is beside the items: the class, and the attributes."""
        if not _library(type(x).__module__):
            return self.instance(x, None)
        return (type(x), self.key(getattr(x, "__dict__", None)))

    def number(self, x: Any, _: Any) -> Hashable:
        """Of a class of a user's, above a number or a text."""
        base = next(kind for kind in type(x).__mro__ if kind in _EXACT)
        return (_exact(base(x)), self.instance(x, None))

    def itself(self, x: Any, _: Any) -> Hashable:
        return Same(x)

    def descriptor(self, x: Any, _: Any) -> Hashable:
        """A method or an attribute that is written in C: only libraries' are known to depend on their arguments."""
        known = isinstance(x, types.MemberDescriptorType) or _library(x.__objclass__.__module__)
        return Same(x) if known else self.unknown()

    def member(self, x: enum.Enum, _: Any) -> Hashable:
        return (Same(x), self.key(type(x)), self.key(vars(x)))

    def constant(self, x: Constant, _: Any) -> Hashable:
        return x if isinstance(x.value, np.ndarray) else (Constant, self.key(x.value))

    def vector(self, x: ComponentVector, _: Any) -> Hashable:
        return (ComponentVector, self.key(x.layout), self.key(x.data))

    def layout(self, x: Layout, _: Any) -> Hashable:
        if _is_plain(x):
            return Same(x)
        return (Same(x), self.key(x.container), self.keys(x.children), self.keys(x.children.values()))

    def treedef(self, x: Any, _: Any) -> Hashable:
        """The structure of a pytree: types, and the static parts of its nodes."""
        node = x.node_data()
        return "*" if node is None else (self.keys(node), tuple([self.treedef(child, _) for child in x.children()]))

    def slice(self, x: slice, _: Any) -> Hashable:
        return (slice, self.keys((x.start, x.stop, x.step)))

    def reference(self, x: weakref.ref, _: Any) -> Hashable:
        return (weakref.ref, self.key(x())) if type(x) is weakref.ref else self.unknown()

    # --- functions --------------------------------------------------------------------------------------------

    def function(self, f: types.FunctionType, _: Any) -> Hashable:
        if _is_of_library(f):
            return self.librarys(f)
        code = _code(f.__code__)
        cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
        held = tuple([self.cell(cell, name, code) for name, cell in cells])
        parts = (Same(f.__code__), held, self.keys((f.__defaults__, f.__kwdefaults__)))
        module = f.__globals__.get("__name__")
        if _library(module) and f.__globals__ is getattr(sys.modules.get(str(module)), "__dict__", None):
            return parts
        self.lasting = False
        hidden = self.unknown() if code.opaque else None
        found = tuple([self.name(f, name, code) for name in code.globals])
        imported = tuple([self.imported(*pair, code.names) for pair in code.imports])
        return (*parts, self.key(vars(f)), found, imported, hidden)

    def cell(self, cell: Any, name: str, code: "_Code") -> Hashable:
        try:
            value = cell.cell_contents
        except ValueError:
            return "empty"
        return self.read(value, name, code)

    def name(self, f: types.FunctionType, name: str, code: "_Code") -> Hashable:
        builtins: Any = f.__builtins__
        found = next((names for names in (f.__globals__, builtins) if name in names), None)
        return "missing" if found is None else self.read(found[name], name, code)

    def imported(self, name: str, whole: bool, names: "_Names") -> Hashable:
        """A module that code imports; what it does with one that it imports as a whole is seen of libraries only."""
        module = sys.modules.get(name)
        known = module is not None and not (whole and not _library(name))
        return self.key(module, names) if known else self.unknown()

    def read(self, x: Any, name: str, code: "_Code") -> Hashable:
        if type(x) is list and name in code.appended:
            return "appended"
        return self.key(x, code.names.of(name)) if isinstance(x, types.ModuleType) else self.key(x)

    def librarys(self, x: Any) -> Hashable:
        return self.unknown() if x.__qualname__ in OPAQUE else Same(x)

    def builtin(self, f: Any, _: Any) -> Hashable:
        if f.__self__ is None or isinstance(f.__self__, types.ModuleType):
            return self.librarys(f) if _library(f.__module__) else self.unknown()
        return (f.__name__, self.key(f.__self__))

    def method(self, f: types.MethodType, _: Any) -> Hashable:
        return (types.MethodType, self.key(f.__func__), self.key(f.__self__))

    def partial(self, f: Any, _: Any) -> Hashable:
        return (type(f), self.keys((f.func, f.args, f.keywords, vars(f))))

    def wrapper(self, f: Any, _: Any) -> Hashable:
        """A function that JAX compiles, or a method in a class."""
        if _is_of_library(f):
            return self.librarys(f)
        return (type(f), None if isinstance(f, staticmethod | classmethod) else Same(f), self.key(f.__wrapped__))

    def cached(self, f: Any, _: Any) -> Hashable:
        """Of `functools.cache`, with a memory of its own."""
        return self.librarys(f) if _is_of_library(f) else self.unknown()

    def property(self, x: property, _: Any) -> Hashable:
        return (property, self.keys((x.fget, x.fset)))

    # --- objects ----------------------------------------------------------------------------------------------

    def module(self, module: types.ModuleType, names: "_Names") -> Hashable:
        """The attributes that code reads there."""
        found, library = vars(module), _library(module.__name__)
        self.lasting &= library
        if not library and (not names.read or "__getattr__" in found or names.read & {"__dict__", "__getattribute__"}):
            return self.unknown()
        if not names.read and module.__name__.partition(".")[0] in ("numpy", "scipy"):  # which hold random numbers
            return self.unknown()
        values = [(name, found[name]) for name in sorted(names.read) if name in found]
        inner = [names.of(name) if isinstance(x, types.ModuleType) else _NO_NAMES for name, x in values]
        return (module.__name__, tuple([(name, self.key(x, n)) for (name, x), n in zip(values, inner, strict=True)]))

    def layer(self, layer: Layer, _: Any) -> Hashable:
        fields = fields_of(layer)
        return (self.key(type(layer)), tuple(fields), self.keys(fields.values()))

    def type(self, cls: type, _: Any) -> Hashable:
        """A library's class is what it is; a user's are the functions and values in it."""
        if _library(cls.__module__):
            return self.librarys(cls)
        self.lasting = False
        if not _library(type(cls).__module__):
            return self.unknown()
        own = {name: value for name, value in vars(cls).items() if name not in _NOT_READ}
        return (Same(cls), self.keys(cls.__bases__), tuple(own), self.keys(own.values()))

    def instance(self, x: Any, _: Any) -> Hashable:
        """An object of a class written in Python: its class and its attributes."""
        if _library(type(x).__module__) and _is_of_library(x):
            return self.librarys(x)
        self.lasting &= isinstance(x, eqx.Module)
        own = _attributes(x)
        return self.unknown() if own is None else (self.key(type(x)), tuple(own), self.keys(own.values()))


class _SeenWalk(_Walk):
    """The walk through what can be known; the rest is taken as it was."""

    def unknown(self) -> Hashable:
        self.lasting = False
        return "unknown"


class _RootWalk(_Walk):
    """The walk from the function that is traced, through all that it reads itself.

    Its arrays are set apart: no function that JAX has traced before holds them.
    """

    def __init__(self, root: Any):
        super().__init__()
        self.root = getattr(root, "__func__", root)
        self.arrays: list[Hashable] = []
        self.inner: list[Hashable] = []

    def key(self, x: Any, names: "_Names" = _NO_NAMES) -> Hashable:
        root, self.root = self.root, None if x is self.root else self.root  # anywhere else it is a function like others
        if x is root or type(x) in _DIRECT or isinstance(x, jax.Array | np.ndarray):
            return super().key(x, names)
        return self.within(x, names)

    def array(self, x: Any) -> Hashable:
        self.arrays.append(super().array(x))
        return "array"

    def within(self, x: Any, names: "_Names" = _NO_NAMES) -> Hashable:
        """The value of an object that is more than a container, by a walk of its own."""
        walk = _Walk()
        key = walk.key(x, names)
        if not walk.lasting:
            self.inner.append(key)
        return key


_DIRECT = {tuple, list, dict, types.MethodType, type(None), bool, int, float, complex, str, bytes}
_EXACT = {type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis), type(NotImplemented)}
_CONTAINERS = (tuple, list, set, frozenset, collections.deque)
_DESCRIPTORS = (
    *(types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType),
    types.ClassMethodDescriptorType,
)
_IMMUTABLE = (
    type(vars(collections.namedtuple("_", "x"))["x"]),
    np.ufunc,
    *(jax.sharding.Sharding, jax.sharding.Mesh, jax.Device),
)
_METHODS = {
    _DESCRIPTORS: _Walk.descriptor,
    _IMMUTABLE: _Walk.itself,
    enum.Enum: _Walk.member,
    _CONTAINERS: _Walk.sequence,
    (dict, FrozenDict, types.MappingProxyType): _Walk.mapping,
    (int, float, complex, str, bytes): _Walk.number,
    Constant: _Walk.constant,
    ComponentVector: _Walk.vector,
    Layout: _Walk.layout,
    jax.tree_util.PyTreeDef: _Walk.treedef,
    slice: _Walk.slice,
    weakref.ref: _Walk.reference,
    types.FunctionType: _Walk.function,
    types.BuiltinFunctionType: _Walk.builtin,
    types.MethodType: _Walk.method,
    functools.partial: _Walk.partial,
    (staticmethod, classmethod, type(jax.jit(abs))): _Walk.wrapper,
    property: _Walk.property,
    type(functools.cache(abs)): _Walk.cached,
    types.ModuleType: _Walk.module,
    Layer: _Walk.layer,
    type: _Walk.type,
    object: _Walk.instance,
}
_NOT_READ = {  # of a class
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__dataclass_fields__"),
    *("__dataclass_params__", "__match_args__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__"),
    *("__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__", "__slots__", "__type_params__"),
}


@functools.cache
def _method(kind: type) -> Any:
    return next(method for kinds, method in _METHODS.items() if issubclass(kind, kinds))


def _exact(x: Any) -> Hashable:
    """Type and bits."""
    if isinstance(x, float | complex):
        return (type(x), repr(x))
    return (type(x), x.dtype, x.tobytes()) if isinstance(x, np.generic) else (type(x), x)


def _library(module: Any) -> bool:
    """Whether a module, by its name, is a library's; NumPy's random numbers depend on more than their arguments."""
    root = module.lstrip("_").partition(".")[0] if isinstance(module, str) else ""
    return root in LIBRARIES and not module.startswith(_NOT_SO)


def _is_of_library(x: Any) -> bool:
    """Whether a library says itself, at the place where `x` says that it lives, that this is its own."""
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", None)
    return _library(module) and isinstance(name, str) and getattr(sys.modules.get(str(module)), name, None) is x


def _attributes(x: Any) -> dict[str, Any] | None:
    """All attributes of an object, read without its own code; `None` where a class written in C may hold more."""
    own: dict[str, Any] = {}
    has_dict = False
    for cls in type(x).__mro__:
        if cls in (object, Generic, np.ndarray) or cls in _EXACT or cls in (*_CONTAINERS, dict):
            continue
        module = sys.modules.get(cls.__module__)
        file = getattr(module, "__file__", None) or ("__main__.py" if cls.__module__ == "__main__" else "")
        has_dict |= any("__dict__" in vars(base) for base in cls.__mro__)
        if not (file.endswith(".py") and (has_dict or "__slots__" in vars(cls)) and _holds_no_more(cls)):
            return None
        for name, descriptor in vars(cls).items():
            if isinstance(descriptor, types.MemberDescriptorType):
                try:
                    own[name] = descriptor.__get__(x)
                except AttributeError:  # not set
                    pass
    return own | (object.__getattribute__(x, "__dict__") if has_dict else {})


def _holds_no_more(cls: type) -> bool:
    """Whether the memory that a class adds to its base is that of its slots, its dict and its weak references."""
    slots = sum(isinstance(x, types.MemberDescriptorType) for x in vars(cls).values())
    slots += ("__dict__" in vars(cls)) + ("__weakref__" in vars(cls))
    return cls.__basicsize__ - (cls.__base__ or object).__basicsize__ <= slots * _POINTER


_POINTER = tuple.__itemsize__
_plain: "weakref.WeakKeyDictionary[Layout, bool]" = weakref.WeakKeyDictionary()


def _is_plain(layout: Layout) -> bool:
    """Whether a layout's containers are named, or types: without anything that could change."""
    if layout not in _plain:
        named = isinstance(layout.container, str) or layout.is_array
        _plain[layout] = named and all(map(_is_plain, layout.children.values()))
    return _plain[layout]


class _Code(NamedTuple):
    """What the code of a function, and of the functions in it, reads."""

    globals: tuple[str, ...]
    names: _Names
    imports: tuple[tuple[str, bool], ...]  # modules, each with whether it is imported as a whole
    read: frozenset[str]
    appended: frozenset[str]  # names of which it reads no more than `name.append`
    opaque: bool  # it assigns to globals, or to variables of the function around it, or reads these by a dict


def global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that code, and that of the functions in it, reads; builtins are among them."""
    return _code(code).globals


@functools.lru_cache(4096)
def _code(code: types.CodeType) -> _Code:
    names, attributes, bare, imports, read, appended = {}, set(), set(), set(), set(), set()
    opaque = False
    instructions = [i for i in dis.get_instructions(code) if i.opname not in ("PUSH_NULL", "EXTENDED_ARG")]
    for i, then in zip(instructions, [*instructions[1:], None], strict=True):
        operation, name = i.opname, i.argval
        attribute = then.argval if then is not None and then.opname in ("LOAD_ATTR", "LOAD_METHOD") else None
        if operation.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER", "IMPORT_FROM")):
            attributes.add(name)
            bare |= set() if attribute else {name}
            opaque |= name in OPAQUE_ATTRIBUTES
        elif operation == "IMPORT_NAME":
            whole = then is None or then.opname != "IMPORT_FROM"
            imports.update((part, whole) for part in (name, name.partition(".")[0]))
        elif operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            opaque = True
        elif operation in ("STORE_DEREF", "DELETE_DEREF"):
            opaque |= name in code.co_freevars
        elif operation.startswith("LOAD_") and i.opcode in (*dis.hasname, *dis.hasfree) and operation != "LOAD_CLOSURE":
            names |= {name: None} if i.opcode in dis.hasname else {}
            bare |= set() if attribute else {name}
            (appended if attribute == "append" else read).add(name)
    for inner in (const for const in code.co_consts if isinstance(const, types.CodeType)):
        found = _code(inner)
        names |= dict.fromkeys(found.globals)
        attributes |= found.names.read
        bare |= found.names.bare
        imports |= set(found.imports)
        appended |= found.appended
        read |= found.read
        opaque |= found.opaque
    read, appended = frozenset(read), frozenset(appended - read)
    found = _Names(frozenset(attributes), frozenset(bare))
    return _Code(tuple(names), found, tuple(sorted(imports)), read, appended, opaque)
