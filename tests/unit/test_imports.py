"""A drawing of the imports has no circle: neither between files nor between folders, also not one for types only.

import-linter holds which layer is above which; here files inside one layer are looked at too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grimp
import pytest

PACKAGES = (
    "fencepost_proto",
    "fencepost_node",
    "fencepost_controller",
    "fencepost",
    "fencepost_testing",
    "fencepost_cli",
)

Graph = Mapping[str, Iterable[str]]


@pytest.fixture(scope="module")
def imports() -> Graph:
    """What each module imports, of ours."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: sorted(graph.find_modules_directly_imported_by(module)) for module in sorted(graph.modules)}


def circle(graph: Graph) -> list[str]:
    """A way that leads back to where it began; empty: there is none."""
    done: set[str] = set()

    def look(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for imported in graph.get(module, ()):
            if found := look(imported, [*way, module]):
                return found
        done.add(module)
        return []

    for module in graph:
        if found := look(module, []):
            return found
    return []


def by_folder(imports: Graph) -> Graph:
    """The same between folders. What is in a package's own folder is its shell: each file there stands for itself."""
    parents = {module.rpartition(".")[0] for module in imports}  # an `__init__` is a file of its own folder
    folders = {
        module: module.rpartition(".")[0] if module.count(".") > 1 and module not in parents else module
        for module in imports
    }
    edges: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    for module, imported in imports.items():
        edges[folders[module]] |= {folders[other] for other in imported} - {folders[module]}
    return edges


def test_no_file_imports_itself_by_way_of_others(imports: Graph) -> None:
    assert len(imports) > 200
    assert circle(imports) == []


def test_no_folder_imports_itself_by_way_of_others(imports: Graph) -> None:
    assert circle(by_folder(imports)) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": ["b"], "b": ["c", "d"], "c": ["b"], "d": []}) == ["b", "c", "b"]
