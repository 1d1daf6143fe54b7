"""The demo's texts: the documentation of the Python standard library on this machine."""

import ast
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
)
"""Folders of the library that hold no documentation of its own."""
MIN_CHARS = 30
"""Shorter texts say too little to be searched for."""
MAX_CHARS = 400
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def library_docstrings() -> Iterator[tuple[str, str]]:
    """Qualified name and first paragraph of every documented public module, class and function.

    They are read from the sources, in the order of their files; nothing is imported. A name that
    is defined twice is given once.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if SKIPPED.intersection(parts) or any(_is_private(part) for part in parts):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name, text in _documented(module, path):
            if name not in seen:
                seen.add(name)
                yield name, text


def _documented(module: str, path: Path) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # old code, old escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # templates and code for other versions
    yield from _walk(module, tree)


def _walk(name: str, node: ast.Module | _Definition) -> Iterator[tuple[str, str]]:
    text = _first_paragraph(ast.get_docstring(node) or "")
    if len(text) >= MIN_CHARS:
        yield name, text
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return  # what is defined inside a function cannot be called from elsewhere
    for child in node.body:
        if isinstance(child, _Definition) and not _is_private(child.name):
            yield from _walk(f"{name}.{child.name}", child)


def _is_private(name: str) -> bool:
    return name.startswith("_") and name != "__init__"


def _first_paragraph(docstring: str) -> str:
    """What a docstring is about, on one line."""
    return textwrap.shorten(docstring.split("\n\n")[0], MAX_CHARS, placeholder=" …")
