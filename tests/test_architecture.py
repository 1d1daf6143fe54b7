"""The house keeps its shape: who may import whom, and where each library lives."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "embatch"
BOTTOM = {"errors", "types", "process", "vectors", "hooks"}
SHARED = {"transport", "storage", "observe"}
MAY_IMPORT = {
    "errors": set(),
    "process": set(),
    "hooks": {"types"},
    "types": {"errors"},
    "vectors": {"errors"},
    "config": {"errors"},
    "listening": {"errors"},
    "transport": BOTTOM,
    "storage": BOTTOM | {"config"},
    "observe": BOTTOM,
    "client": BOTTOM | SHARED | {"config"},
    "local": BOTTOM,
    "service": BOTTOM | {"local"},
    "providers": BOTTOM | SHARED | {"config", "client", "service", "local"},
    "datasets": BOTTOM | SHARED,
    "journal": BOTTOM | SHARED,
    "runs": BOTTOM | SHARED | {"providers", "datasets", "journal"},
    "execution": BOTTOM | SHARED | {"runs", "providers", "datasets", "journal"},
    "environment": BOTTOM | SHARED | {"config", "runs", "providers", "datasets", "journal"},
    "testing": BOTTOM | {"providers"},
}
"""A package not named here stands on top and may import everything."""
HOMES = {
    "httpx2": {"transport"},
    "obstore": {"storage"},
    "botocore": {"storage"},
    "openvino": {"local"},
    "tokenizers": {"local"},
    "huggingface_hub": {"local"},
    "sqlalchemy": {"journal"},
    "alembic": {"journal"},
    "procrastinate": {"execution"},
    "psycopg": {"journal", "execution"},
    "apprise": {"observe"},
    "jinja2": {"dashboard"},
    "sse_starlette": {"dashboard"},
    "starlette": {"server", "dashboard"},
    "uvicorn": {"server", "listening"},
    "prometheus_client": {"server", "observe"},
    "typer": {"cli"},
    "rich": {"cli"},
    "platformdirs": {"config", "local"},
}


def _modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found.append((parts[0], path))
    return found


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "embatch":
                names |= {f"embatch.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("package", "path"), _modules(), ids=lambda value: str(value)[-60:])
def test_a_module_imports_only_what_lies_below_it(package: str, path: Path) -> None:
    """Imports go one way; neighbours never import each other."""
    allowed = MAY_IMPORT.get(package)
    if allowed is None:
        return
    own = {name.split(".")[1] for name in _imports(path) if name.startswith("embatch.")}
    assert own - {package} <= allowed


@pytest.mark.parametrize(("package", "path"), _modules(), ids=lambda value: str(value)[-60:])
def test_a_library_lives_in_one_place(package: str, path: Path) -> None:
    """Each third-party library has its home, so that changing it changes one package."""
    roots = {name.split(".")[0] for name in _imports(path)}
    homeless = {name for name in roots & HOMES.keys() if package not in HOMES[name]}
    assert not homeless


def test_the_environment_is_read_in_one_place() -> None:
    """config.py alone looks at environment variables."""
    readers = [
        path.name
        for _, path in _modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert set(readers) <= {"config.py"}


@pytest.mark.parametrize(("package", "path"), _modules(), ids=lambda value: str(value)[-60:])
def test_no_file_grows_past_400_lines(package: str, path: Path) -> None:
    """A file over 400 lines wants to be two."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
