# SPDX-License-Identifier: Apache-2.0
"""pagedserve/_C.pyi names what the built extension has, field by field."""

import ast
from pathlib import Path

from pagedserve import _C

TREE = ast.parse((Path(_C.__file__).parent / "_C.pyi").read_text(encoding="utf-8"))


def names(body: list[ast.stmt]) -> set[str]:
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_stubs_name_everything_in_the_extension():
    assert names(TREE.body) == public(_C)


def test_stubs_name_every_field():
    classes = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
    for name, node in classes.items():
        if name.startswith("_"):
            continue
        inherited = [names(classes[base.id].body) for base in node.bases if isinstance(base, ast.Name)]
        assert names(node.body).union(*inherited) == public(getattr(_C, name)), name
