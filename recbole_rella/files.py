"""Files that are never half-written, and a cache that never trusts a damaged one.

Everything this package writes goes to a temporary name beside its target and is renamed once it is complete, so that a
full disk or an interruption leaves the last good file as it was. A file replaces a file and nothing else; a folder with something
in it is replaced only where it is this package's own.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import yaml
from filelock import FileLock

from recbole_rella.errors import RellaError

logger = logging.getLogger(__name__)

# A path as callers give it.
AnyPath = str | os.PathLike[str]

# Part of the name of every cached file: raise it when the same input would give another embedded LLM, vectors or prompts.
CACHE_VERSION = 5


class OutputError(RellaError):
    """Nothing can be written at a path without the loss of what is there; the message says why."""


def check_folder(path, name=""):
    """A path at which a folder is, or can be made. Commands ask before they load anything.

    Args:
        path (str or pathlib.Path): of it.
        name (str): of the flag or key that gives it, for the message.

    Returns:
        pathlib.Path: the same.

    Raises:
        OutputError: it, or what it would be in, is something else than a folder.
    """
    path = Path(path)
    there = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if not there.is_dir():
        raise OutputError(f"{_expected(name)} a folder at {there}, found something else. Name another place.")
    return path


def check_file(path, name="", apart_from=()):
    """A path at which a file can be written, new or in the place of another file. Commands ask before they load anything.

    Args:
        path (str or pathlib.Path), name (str): as for `check_folder`.
        apart_from (iterable of tuple): (name, path) of what the same command reads or writes.

    Returns:
        pathlib.Path: the same.

    Raises:
        OutputError: there is something else than a file, its folder cannot be one, or it is one of `apart_from` by any spelling.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder: name a file in it" if path.is_dir() else "none"
        raise OutputError(f"{_expected(name)} the name of a file, found {path}, which is {what}.")
    check_folder(path.parent, name)
    for other, taken in apart_from:
        if _is_at(path, taken):
            raise OutputError(
                f"{_expected(name)} another place than that of {other} ({taken}), found {path}, which would replace it."
            )
    return path


def _expected(name):
    return f"{name}: expected" if name else "Expected"


def _is_at(path, taken):
    """Whether two paths, there or not yet, are one file, or the second lies where the first would be a file."""
    path, taken = (Path(os.path.realpath(place)) for place in (path, taken))
    return path in (taken, *taken.parents) or (path.exists() and taken.exists() and path.samefile(taken))


@contextlib.contextmanager
def _beside(path):
    """A temporary path beside `path`, which is removed in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary / path.name
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacing(path):
    """Give a temporary path beside `path`; on success the file there replaces `path`, on an error it is removed.

    Yields:
        pathlib.Path: a file name to write to.

    Raises:
        OutputError: there is no place for a file.
    """
    path = check_file(path)
    with _beside(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def replacing_folder(path, own=False):
    """As `replacing`, for a folder.

    Args:
        path (str or pathlib.Path): of it; new or empty.
        own (bool): whether this package made what is there now, so that it may go.

    Yields:
        pathlib.Path: a name to make a folder at.

    Raises:
        OutputError: there is no place for a folder, or something is in it.
    """
    path = check_folder(path).resolve()
    if not own and not is_new(path):
        raise OutputError(f"Expected a new or an empty folder, found {path}, in which is something. Name another, or move it.")
    with _beside(path) as temporary:
        yield temporary
        if own and path.is_dir():
            # It cannot be replaced in one step: the old one is moved aside first, and back if that fails.
            old = temporary.with_name(f"{path.name}.old")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(old, path)
                raise
        else:
            if path.is_dir():
                path.rmdir()  # which leaves what has come into it meanwhile
            os.replace(temporary, path)


def is_new(folder):
    """Whether a folder is not there yet, or empty."""
    folder = Path(folder)
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def write_text(path, text):
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path, values):
    """Write a dictionary as YAML, in its order, whole or not at all."""
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def read_yaml(path):
    """The values of a YAML file; an empty file has none."""
    return yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8-sig")) or {}


def write_json(path, value):
    """Write `value` as indented JSON, whole or not at all; numbers that JSON does not have (nan, infinity) become null."""
    write_text(path, json.dumps(_finite(value), indent=2, default=str, allow_nan=False) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fingerprint(*parts):
    """A short hash of JSON-able values and numpy arrays, the key of a cache entry.

    Returns:
        str: 16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str, ensure_ascii=False).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def cache_key(*parts):
    """The `fingerprint` of what a cached file depends on, this package's way of making it included."""
    return fingerprint(CACHE_VERSION, *parts)


def _update(digest, path):
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def file_fingerprint(path):
    """Hash of the contents of a file, whatever its name: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    _update(digest, path)
    return digest.hexdigest()


def folder_fingerprint(folder):
    """Hash of the names and contents of the files in `folder`: the identity of a checkpoint on disk."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(folder).iterdir()):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            _update(digest, path)
    return digest.hexdigest()


def lock(path):
    """A lock on what is made at `path`, held by one process at a time, on this machine or through a shared folder.

    Returns:
        filelock.FileLock: a context manager; the file beside `path` that ends in .lock stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f"{path.name}.lock"))


def _read_arrays(path):
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zipfile, zlib, OS and value errors: whatever the damage, the remedy is the same
        logger.warning("The cached file [%s] is damaged (%s) and is made again.", path, error)
        return None


def cached_arrays(folder, kind, parts, make):
    """Arrays from the cache, or what `make()` returns, kept there. Of several processes one makes them.

    The file is a numpy archive, whose checksums are verified on reading; one that does not read well is made again.

    Args:
        folder (pathlib.Path): the cache.
        kind (str): what the arrays are; the file's name begins with it.
        parts (tuple or None): all that the arrays depend on, for `cache_key`; None where that is not known: nothing is kept.
        make (callable): no arguments, returns a dict of arrays.

    Returns:
        dict: str -> numpy.ndarray, what `make` returned, now or earlier.
    """
    if parts is None:
        return make()
    path = Path(folder) / f"{kind}-{cache_key(*parts)}.npz"
    with lock(path):
        arrays = _read_arrays(path)
        if arrays is None:
            arrays = make()
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
    return arrays
