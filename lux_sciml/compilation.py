"""Compiled programs that are kept on disk, so that the next process starts at once."""

import contextlib
import hashlib
import math
import os
import pathlib
import platform

import jax

from . import _names
from ._compat import is_whole_program, reopen_compilation_cache
from .core.converters import checks_itself, converted, number

__dir__ = _names.public(__name__)

__all__ = ["compilation_cache"]


@checks_itself
def compilation_cache(folder: str | os.PathLike[str] | None = None, *, max_bytes: float = 2**31) -> pathlib.Path:
    """Keeps what JAX compiles from now on in a folder, where later processes find it; returns the folder.

    A program that is found there is traced, but not compiled: the gradient of a neural ODE is ready in less than half
    the time. It is JAX's own cache with settings that suit small models: programs that compile quickly are kept too.
    Processes may share the folder.

    * `folder`: by default one of the user's cache folder. Either has a folder inside for each kind of processor and
      version of JAX, for a program that was compiled for another processor may crash.
    * `max_bytes`: the size that it is brought below by this call, in bytes, 2 GiB by default. What was used longest ago
      goes first; file systems know that to a day. Files that a process left unfinished, since it was killed, go too.

    Call it once at the start of a script, or at any other time; the last two lines of the example, JAX's own, switch it
    off. Programs with callbacks to the host, as by `lux.check_finite`, progress meters or `throw=True`, are not kept.
    Raises `TypeError` and `ValueError` for what is no folder's name and no finite positive size, and `OSError` where
    the folder cannot be made or written to, `NotADirectoryError` where there is a file in its place.

    >>> import tempfile, jax, lux_sciml as lux
    >>> from jax.experimental.compilation_cache.compilation_cache import reset_cache
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = lux.compilation_cache(folder)
    ...     _ = jax.jit(lambda x: 2 * x + 1)(1.0)
    ...     any(kept.iterdir())
    True
    >>> jax.config.update("jax_enable_compilation_cache", False)
    >>> reset_cache()
    """
    import platformdirs  # here, for the import of the package is short

    size = converted("max_bytes", _size, max_bytes)
    root = platformdirs.user_cache_path("lux_sciml") if folder is None else converted("folder", _folder, folder)
    path = root / f"jax-{jax.__version__}-{_processor()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _tidy(path, size)
    except OSError as error:
        file = isinstance(error, NotADirectoryError) and next((x for x in path.parents if x.is_file()), None)
        reason = f"{file} is a file" if file else error.strerror
        raise type(error)(f"the compilation cache cannot be in {root}: {reason}; give another folder") from error
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", -1)  # with a bound JAX reads all files' times at each write
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    jax.config.update("jax_enable_compilation_cache", True)
    reopen_compilation_cache()
    return path


@checks_itself
def _folder(value: str | os.PathLike[str]) -> pathlib.Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        kind = ValueError if value == "" else TypeError
        raise kind(f"expected the name of a folder, such as '.', the one that one works in, got {value!r}")
    return pathlib.Path(value).expanduser().absolute()


@checks_itself
def _size(value: float) -> int:
    if isinstance(value, bool):
        raise TypeError(f"expected a number of bytes, such as 1e9, got {value}")
    if not 1 <= number(value) < math.inf:
        raise ValueError(f"expected a number of bytes, 1 or more and finite, such as 1e9, got {value}")
    return int(value)


def _processor() -> str:
    """Of the processor, the instructions that XLA may use."""
    described = [platform.system(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        described += sorted({line for line in lines if line.lower().startswith(("flags", "features"))})
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:12]


def _tidy(path: pathlib.Path, size: int) -> None:
    """Remove what is unfinished of what was written since this was last done, and what is too much for the size."""
    done = path / ".tidied"
    since = done.stat().st_mtime if done.exists() else 0.0
    done.touch()
    programs, total = [], 0
    for program in path.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process has removed it, or has it open
            status = program.stat()
            if status.st_mtime >= since and not is_whole_program(program.read_bytes()):
                program.unlink()
            else:
                programs.append((max(status.st_atime, status.st_mtime), status.st_size, program))
    for _, bytes_, program in sorted(programs, reverse=True):
        total += bytes_
        if total > size:
            with contextlib.suppress(OSError):
                program.unlink()
