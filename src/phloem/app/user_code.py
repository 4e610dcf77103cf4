"""Loads user code, from a module or a file: ``package.module:Class`` or ``path/file.py:Class``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from phloem.model.errors import UserCodeError

__all__ = ["load_class", "load_module"]

T = TypeVar("T")


def load_class(code: str, base: type[T], folder: Path) -> tuple[type[T], str]:
    """The class that ``code`` names, and its source file.

    Without a class name the one class of the module that derives from ``base`` is taken. ``folder``: where
    relative file names are looked for. `UserCodeError` says what failed, with file and line.
    """
    where, _, name = code.rpartition(":") if ":" in code else (code, "", "")
    module = _from_file(folder / where) if where.endswith(".py") else _from_module(where, folder)
    file = getattr(module, "__file__", "") or where
    if name:
        found = getattr(module, name, None)
        if not isinstance(found, type) or not issubclass(found, base):
            have = ", ".join(c.__name__ for c in _classes(module, base)) or "none"
            raise UserCodeError(f"{where} has no {base.__name__} class {name!r}; it has: {have}")
        return found, file
    classes = _classes(module, base)
    if len(classes) != 1:
        have = ", ".join(c.__name__ for c in classes) or "none"
        raise UserCodeError(
            f"{where} must have one {base.__name__} class, or say which ({where}:Class); it has: {have}"
        )
    return classes[0], file


def load_module(code: str, folder: Path) -> ModuleType:
    """The module that ``code`` names, ``package.module`` or ``path/file.py``; a file is read anew each time."""
    return _from_file(folder / code) if code.endswith(".py") else _from_module(code, folder)


def _classes(module: ModuleType, base: type[T]) -> list[type[T]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserCodeError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"phloem_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserCodeError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserCodeError(f"{path} does not import: {_where(error, path)}{type(error).__name__}: {error}") from error
    return module


def _from_module(name: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserCodeError(f"module {name!r} does not import: {type(error).__name__}: {error}") from error


def _where(error: BaseException, path: Path) -> str:
    """``line 12: ``, of the file itself."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"line {error.lineno}: "
    lines = (
        [f.lineno for f in inspect.getinnerframes(error.__traceback__) if Path(f.filename) == path]
        if error.__traceback__
        else []
    )
    return f"line {lines[-1]}: " if lines else ""
