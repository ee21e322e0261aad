"""Do the quick tests notice when one small thing in the code is wrong? Breaks one thing at a time and runs them.

    python tests/mutation/mutate.py client/data/cohorts/splits.py server/aggregation --most 200 --seed 1

Every mutant is one change inside one function: a comparison, a sign, a number, `and` for `or`, `min` for `max`, a `not`
left out. The tests of the function's room are run against it, in a process that is forked after all has been imported.
A mutant that no test notices is printed with its line: either a test is missing, or the change changes nothing that
anybody could notice. Exit code 1 if any survives.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
QUICK = "not slow and not learning and not ray and not gpu and not deployment"
TIERS = ("unit", "security", "simulation")
_PATIENCE = 4.0
"""A mutant's tests may take so many times what they take on sound code; longer counts as noticed."""

COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "len", "floor": "ceil", "ceil": "floor"}


@dataclass(frozen=True)
class Mutant:
    """One change: in which file and function, on which line, from what to what; `place` is the node's number."""

    file: Path
    function: str
    line: int
    place: int
    change: str


def swap(node: ast.AST) -> str:
    """Break a node in place; what was done, "" if there is nothing to break in it."""
    match node:
        case ast.Compare(ops=[op, *_]) if type(op) in COMPARE:
            node.ops[0] = COMPARE[type(op)]()
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            node.op = ARITHMETIC[type(op)]()
        case ast.BoolOp(op=op):
            node.op = ast.And() if isinstance(op, ast.Or) else ast.Or()
        case ast.Constant(value=bool() as value):
            node.value = not value
        case ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in NAMES:
            setattr(node, "id" if isinstance(node, ast.Name) else "attr", NAMES[name])
        case ast.UnaryOp(op=ast.Not()):
            node.op = ast.UAdd()  # `+x` of a bool keeps its truth: the `not` is left out
        case _:
            return ""
    return f"{type(node).__name__} -> {ast.unparse(node)}"


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions of a module and of its classes, by qualified name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def body_nodes(function: ast.FunctionDef) -> list[ast.AST]:
    """All nodes of what a function does, in a fixed order; its defaults and annotations were evaluated before."""
    return [node for statement in function.body for node in ast.walk(statement)]


def mutants_of(file: Path) -> Iterator[Mutant]:
    """All mutants of one file."""
    tree = ast.parse(file.read_text())
    for name, function in functions(tree):
        for place, node in enumerate(body_nodes(function)):
            if change := swap(copy.deepcopy(node)):
                yield Mutant(file, name, node.lineno, place, change)


def broken_code(mutant: Mutant) -> CodeType:
    """The mutant's function, compiled."""
    tree = ast.parse(mutant.file.read_text())
    function = dict(functions(tree))[mutant.function]
    swap(body_nodes(function)[mutant.place])
    wanted = ast.get_source_segment(mutant.file.read_text(), function)
    assert wanted is not None
    stack = [compile(ast.fix_missing_locations(tree), str(mutant.file), "exec", dont_inherit=True)]
    while stack:
        code = stack.pop()
        if code.co_qualname == mutant.function:
            return code
        stack += [const for const in code.co_consts if isinstance(const, CodeType)]
    raise LookupError(mutant.function)


def plain(found: Any) -> FunctionType | None:
    """The function behind a method, a property or a decorated one; None if it cannot be reached."""
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "func", found)  # of a cached property
    while (wrapped := getattr(found, "__wrapped__", None)) is not None:
        found = wrapped
    found = getattr(found, "__func__", found)
    return found if isinstance(found, FunctionType) else None


def put_in(module: ModuleType, mutant: Mutant) -> bool:
    """Let the module's function be the mutant, in this process; False if it cannot be reached."""
    owner: Any = module
    *classes, name = mutant.function.split(".")
    for one in classes:
        owner = getattr(owner, one)
    function = plain(vars(owner).get(name))
    code = broken_code(mutant)
    if function is None or len(function.__code__.co_freevars) != len(code.co_freevars):
        return False
    function.__code__ = code
    return True


def tests_of(file: Path) -> list[str]:
    """The folders with tests of a file's room, the nearest first."""
    room = file.relative_to(ROOT).parts[:2]
    return [str(folder) for tier in TIERS if (folder := ROOT.joinpath("tests", tier, *room)).is_dir()]


def passes(folders: list[str], mutant: Mutant | None, patience_s: float) -> bool | None:
    """Whether the quick tests pass, in a forked process; None if the mutant cannot be put in."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with (
            Path(os.devnull).open("w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            code = 77
            if mutant is None or put_in(importlib.import_module(module_name(mutant.file)), mutant):
                options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", QUICK]
                code = int(pytest.main([*options, *folders]))
        os._exit(code)
    ends = time.monotonic() + patience_s
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 77 else code == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def module_name(file: Path) -> str:
    """The name that a file is imported by."""
    return "fedgraft." + ".".join(file.relative_to(ROOT).with_suffix("").parts)


def main() -> int:
    """Run what was asked for, print survivors and the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders of the four packages")
    parser.add_argument("--most", type=int, default=200, help="how many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.chdir(ROOT)
    import torch

    torch.set_num_threads(1)
    files = [file for path in asked.paths for file in ([path] if path.suffix else sorted(path.glob("*.py")))]
    files = [file.resolve() for file in files if file.name != "__init__.py"]
    for file in files:
        importlib.import_module(module_name(file))
    everything = [mutant for file in files for mutant in mutants_of(file)]
    chosen = random.Random(asked.seed).sample(everything, min(asked.most, len(everything)))
    chosen.sort(key=lambda mutant: (str(mutant.file), mutant.line))
    sound: dict[tuple[str, ...], float] = {}
    caught, survived, unreachable = 0, 0, 0
    for mutant in chosen:
        folders = tests_of(mutant.file)
        if tuple(folders) not in sound:
            began = time.monotonic()
            if not passes(folders, None, 3600):
                sys.exit(f"{', '.join(folders)}: the tests fail on sound code")
            sound[tuple(folders)] = time.monotonic() - began
        result = passes(folders, mutant, 30 + _PATIENCE * sound[tuple(folders)])
        caught, survived, unreachable = (
            caught + (result is False),
            survived + bool(result),
            unreachable + (result is None),
        )
        if result:
            where = f"{mutant.file.relative_to(ROOT)}:{mutant.line}"
            print(f"SURVIVED {where} {mutant.function}: {mutant.change}", flush=True)
    tried = caught + survived
    print(
        f"{caught} of {tried} noticed ({caught / max(1, tried):.0%}); {unreachable} could not be put in; "
        f"{len(everything)} are possible"
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
