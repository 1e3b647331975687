"""What may import what: services talk over sockets, never by import."""

import ast
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cri_frontend", "image_svc", "sandbox_svc", "stream_svc", "decryptor")
#: Dear in memory: each may be imported only by the modules named (pyroute2 21 MB, fastapi 25 MB, rich 8 MB a process).
EARNED = {
    "fastapi": {"bulkhead/cli/status_page.py"},
    "uvicorn": {"bulkhead/cli/status_page.py"},
    "pydantic": {"bulkhead/cli/status_page.py"},
    "pyroute2": {"sandbox_svc/links.py"},
    "httpx": {"image_svc/"},
    "rich": {"bulkhead/cli/images/bars.py"},
}


@cache
def imports(path: Path) -> list[str]:
    """Return every module a file imports, wherever in the file."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append(node.module)
    return found


@cache
def sources(package: str) -> list[Path]:
    """Return the Python files of a package, generated ones left out."""
    found = {path for root in ("services", "shared") for path in (ROOT / root).glob(f"**/{package}/**/*.py")}
    return sorted(path for path in found if "bulkhead/proto" not in path.as_posix())


@pytest.mark.parametrize("package", [*PACKAGES, "bulkhead"])
def test_no_package_imports_a_service(package: str) -> None:
    """A service imports itself and bulkhead; bulkhead imports no service."""
    foreign = set(PACKAGES) - {package}

    files = sources(package)
    found = [f"{path}: {name}" for path in files for name in imports(path) if name.split(".")[0] in foreign]

    assert files
    assert found == []


def test_the_shim_stays_small() -> None:
    """The shim uses the standard library, protobuf and bulkhead's own light modules: every pod pays for it."""
    allowed = {"sandbox_svc", "bulkhead", "google"}
    heavy = {"bulkhead.rpc", "bulkhead.metrics", "grpc", "pyroute2", "prometheus_client", "subprocess", "asyncio"}
    import sys

    found = [
        f"{path}: {name}"
        for path in sources("sandbox_svc")
        if "/shim/" in path.as_posix()
        for name in imports(path)
        if name in heavy or (name.split(".")[0] not in allowed and name.split(".")[0] not in sys.stdlib_module_names)
    ]

    assert found == []


@pytest.mark.parametrize("library", sorted(EARNED))
def test_dear_libraries_stay_where_they_are_earned(library: str) -> None:
    """A library that costs every process megabytes is imported only where it does its work."""
    strangers = [
        path.as_posix()
        for package in (*PACKAGES, "bulkhead")
        for path in sources(package)
        for name in imports(path)
        if name.split(".")[0] == library and not any(place in path.as_posix() for place in EARNED[library])
    ]

    assert strangers == []


def test_no_import_goes_in_a_circle() -> None:
    """No module is needed by what it needs itself, at whatever remove.

    Every import counts, also one inside a function and one for type checkers alone: either way two modules that name
    each other are understood, and changed, only together.
    """
    modules = {_name(path): path for package in (*PACKAGES, "bulkhead") for path in sources(package)}
    assert len(modules) > 300

    circles = _circles({name: _needs(path, modules) for name, path in modules.items()})

    assert circles == []


def test_a_circle_is_found() -> None:
    """What looks for circles finds one of three modules, and none where two of them merely share a third."""
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert _circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def _name(path: Path) -> str:
    """Return a module's full name from its place below services/<service> or shared."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[2 if parts[0] == "services" else 1 :]).removesuffix(".__init__")


def _needs(path: Path, modules: Collection[str]) -> set[str]:
    """Return the modules of ours that a file imports; a name that it takes from a package may be one, too."""
    found = set(imports(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names
            if names <= set(modules):
                found.discard(node.module or "")
    return (found & set(modules)) - {_name(path)}


def _circles(needs: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for name in needs:
        reached[name], waiting = set(), list(needs[name])
        while waiting:
            if (other := waiting.pop()) not in reached[name]:
                reached[name].add(other)
                waiting += needs[other]
    groups = {tuple(sorted(o for o in found if name in reached[o])) for name, found in reached.items() if name in found}
    return [list(group) for group in sorted(groups)]


def test_modules_stay_readable() -> None:
    """A module has at most 300 lines: beyond that it has two subjects."""
    long = [
        f"{path.relative_to(ROOT)}: {lines}"
        for package in (*PACKAGES, "bulkhead")
        for path in sources(package)
        if (lines := len(path.read_text().splitlines())) > 300
    ]

    assert long == []
