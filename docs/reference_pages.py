"""The pages of the reference, made of what they are about: keys from the models, commands from the program.

A hook of mkdocs (`mkdocs.yml`); nothing of it is written to disk. The meaning of a key is the text below it in its
model or, where there is none, what the model's own text says of it.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

PLAIN = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "at least so many:"}
DISCRIMINATORS = ("kind", "by")
"""Keys that say which of several models a mapping is."""


def pages() -> dict[str, str]:
    """The text of each page of the reference, by its place below `docs`."""
    from fedgraft.client.enrolment.config import SiteConfig
    from fedgraft.common.study.study import Study
    from fedgraft.server.provisioning.consortium import Consortium
    from fedgraft.server.watch.login.page_settings import PageSettings
    from fedgraft.simulations.compare.question import Question
    from fedgraft.simulations.phantoms.scenario import Scenario

    files = {
        "study": (
            Study,
            "A study's keys",
            "What `study.yaml` may say. `configs/studies/quickstart.yaml` is an example.",
        ),
        "comparison": (
            Question,
            "A comparison's keys",
            "What each question under `compare:` in a study's file may say.",
        ),
        "site": (SiteConfig, "A site's keys", "What a hospital's `site.yaml` may say. It never leaves the hospital."),
        "scenario": (Scenario, "A scenario's keys", "The hospitals of a simulation."),
        "consortium": (Consortium, "A consortium's keys", "Who takes part, and where the server is reached."),
        "page": (
            PageSettings,
            "A live page's keys",
            "How others reach it and log in: `page.yaml` of the server's folder.",
        ),
    }
    made = {f"reference/{name}.md": keys_page(*about) for name, about in files.items()}
    return made | {"reference/commands.md": commands_page(), "reference/api.md": api_page()}


def on_files(files: Any, config: Any) -> Any:
    """Mkdocs asks what there is besides the files of the folder."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def keys_page(model: type[BaseModel], title: str, says: str) -> str:
    """All keys that a file of this kind may have, a section for each model that its values are made of."""
    parts = [f"# {title}", says]
    for part in models_below(model):
        parts += [f"## {heading(part)}", in_lines(part.__doc__), keys_table(part)]
    return "\n\n".join(parts) + "\n"


def models_below(model: type[BaseModel]) -> list[type[BaseModel]]:
    """This model and those that its keys take, each once, in the order in which a reader meets them."""
    found: list[type[BaseModel]] = []

    def visit(one: type[BaseModel]) -> None:
        if one not in found:
            found.append(one)
            for field in one.model_fields.values():
                for below in models_in(field.annotation):
                    visit(below)

    visit(model)
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of; for methods, which a study finds by name, all that fedgraft has."""
    from fedgraft.common.study.stages.methods import METHODS, MethodValue, method_class

    if annotation is MethodValue:
        yield from map(method_class, METHODS)
    elif inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def told_by(model: type[BaseModel]) -> tuple[str, str] | None:
    """The key and its one value by which a file says that it means this model; None if it need not."""
    keys = ((key, model.model_fields[key].annotation) for key in DISCRIMINATORS if key in model.model_fields)
    return next(((key, str(get_args(kind)[0])) for key, kind in keys if len(get_args(kind)) == 1), None)


def heading(model: type[BaseModel]) -> str:
    """A model's heading: what a file says to have it, or its name."""
    told = told_by(model)
    return model.__name__ if told is None else f"{model.__name__}: `{told[0]}: {told[1]}`"


def keys_table(model: type[BaseModel]) -> str:
    """A row for each key: its type, what it is if it is not given, and what it means."""
    rows = ["| key | is | if not given | means |", "|---|---|---|---|"]
    meanings = meanings_of(model)
    for name, field in model.model_fields.items():
        if name != (told_by(model) or ("",))[0]:
            rows.append(
                f"| `{name}` | {cell(type_words(field))} | {cell(default_words(field))} | {cell(meanings[name])} |"
            )
    return "\n".join(rows) if len(rows) > 2 else "It has no keys of its own."


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """What each key means: the text below it, or the sentences of the model's text that name it; else ""."""
    below = texts_below(model)
    said = " ".join(one.__doc__ or "" for one in model.__mro__ if issubclass(one, BaseModel) and one is not BaseModel)
    sentences = re.split(r"(?<=[.;:])\s+(?=[A-Z`])", " ".join(said.split()))
    return {
        name: below.get(name) or " ".join(one for one in sentences if re.search(rf"`{name}[`:]", one))
        for name in model.model_fields
    }


def texts_below(model: type[BaseModel]) -> dict[str, str]:
    """The text that stands below each key in the source of a model and of those that it is made from."""
    texts: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not issubclass(one, BaseModel) or one.__module__.startswith("pydantic") or "[" in one.__name__:
            continue  # a generic class with its types filled in has no source of its own
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for key, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and (said := spoken(text)):
                texts[key.target.id] = said
    return texts


def spoken(statement: ast.stmt) -> str:
    """The text that a statement is, if it is nothing else."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return " ".join(value.value.split()) if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def type_words(field: FieldInfo) -> str:
    """What a key takes, in words: its type, and the bounds of its values."""
    limits = [
        f"{SIGNS[key]} {getattr(limit, key):g}" for limit in field.metadata for key in SIGNS if hasattr(limit, key)
    ]
    return ", ".join([words_of(field.annotation), *limits])


def words_of(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is None:
        return words_of_class(annotation) if inspect.isclass(annotation) else "a value"
    if origin is Annotated:  # the bounds are among the field's own
        return words_of(parts[0])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(words_of(part) for part in parts if part is not NoneType))
    if issubclass(origin, Mapping):
        return f"a mapping from {words_of(parts[0])} to {words_of(parts[1])}"
    return f"a list: {words_of(parts[0])}"


def words_of_class(kind: type) -> str:
    """The same of a type that is made of no others."""
    if inspect.isabstract(kind) and (below := list(models_in(kind))) != [kind]:
        return " or ".join(words_of(one) for one in below)
    if issubclass(kind, BaseModel):
        return f"[{kind.__name__}](#{anchor(heading(kind))})"
    if issubclass(kind, Enum):
        return " or ".join(f"`{one.value}`" for one in kind)
    return "a path, from the file's own folder" if issubclass(kind, PurePath) else PLAIN.get(kind.__name__, "a value")


def anchor(title: str) -> str:
    """What a heading is called in a link."""
    return re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-")


def default_words(field: FieldInfo) -> str:
    """What a key is if nobody gives it."""
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is PydanticUndefined:
        return "has to be given"
    if isinstance(value, BaseModel):
        return "its own defaults"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "`true`", False: "`false`"}[value]
    if isinstance(value, str | int | float | PurePath):
        return f"`{value}`" if value != "" else "empty"
    if isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value):
        return ", ".join(f"`{getattr(one, 'kind', type(one).__name__)}`" for one in value)
    return ("`" + ", ".join(sorted(str(getattr(one, "value", one)) for one in value)) + "`") if value else "none"


def commands_page() -> str:
    """Every command with what it takes."""
    from fedgraft.cli import app

    program = typer.main.get_command(app)
    parts = [
        "# Commands",
        "Every command says the same with `--help`. `--debug` before a command keeps the trace of an error.",
    ]
    for path, command in commands_below(program, ("fedgraft",)):
        parts += [f"## {' '.join(path)}", in_lines(command.help), command_table(command)]
    return "\n\n".join(part for part in parts if part) + "\n"


def commands_below(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """The commands that do something, below this one, with how they are called."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, below in command.commands.items():
        if not below.hidden:
            yield from commands_below(below, (*path, name))


def command_table(command: click.Command) -> str:
    """A row for each argument and option of a command."""
    rows = ["| takes | means | if not given |", "|---|---|---|"]
    for taken in command.params:
        given = (
            ", ".join(f"`{name}`" for name in taken.opts)
            if taken.param_type_name == "option"
            else f"`{taken.name.upper()}`"
        )
        default = (
            "has to be given" if taken.required else "" if taken.default in (None, False, ()) else f"`{taken.default}`"
        )
        if not getattr(taken, "hidden", False) and taken.name != "help":
            rows.append(f"| {given} | {cell(getattr(taken, 'help', None) or '')} | {cell(default)} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def api_page() -> str:
    """What `import fedgraft` offers, each from its own text."""
    import fedgraft

    entries = "\n".join(f"::: {place_of(name)}\n" for name in fedgraft.__all__)
    says = "`import fedgraft as fg`, then `fg.` and one of these. [From Python](../python.md) shows them at work."
    return f"# Python\n\n{says}\n\n{entries}"


def place_of(name: str) -> str:
    """Where a public name is written, `module.name`."""
    import fedgraft

    public = getattr(fedgraft, name)
    return f"{public.__module__}.{name}"


def in_lines(text: str | None) -> str:
    """A text as it is written, without the margin of its source; examples keep theirs."""
    return inspect.cleandoc(text or "").replace("\b\n", "").replace("\f", "")


def cell(text: str) -> str:
    """A text as it may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")
