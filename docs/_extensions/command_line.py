"""The directive `commands`: a section for each command of vdvae-repr, from what its help is made of."""

import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from vdvae_repr.cli import app as cli
from vdvae_repr.tasks import Task


class Commands(SphinxDirective):
    """Describe every command: what it does, its arguments and options, their defaults."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        text = "\n".join(describe("vdvae-repr", typer.main.get_command(cli)))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class TaskOptions(SphinxDirective):
    """Describe every task and its options, which stand in the tasks' dataclasses."""

    def run(self) -> list[nodes.Node]:
        """Return a definition list a task."""
        lines = []
        for name, kind in Task.known.items():
            lines += [f"## `{name}`", "", first_paragraph(kind.__doc__), ""]
            options = [
                (f"--{f.name.replace('_', '-')}", f.metadata.get("help", "")) for f in fields(kind)
            ]
            lines += table(options) if options else ["It has no options of its own.", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def describe(path: str, command: Any) -> Iterator[str]:
    """Yield MyST lines about a command, and about those below it."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from describe(f"{path} {name}", below)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    yield from (f"## `{path}`", "", inspect.cleandoc(command.help or ""), "", "```text")
    yield " ".join([path, "[OPTIONS]", *(a.name.upper() for a in arguments)])
    yield from ("```", "")
    rows = [(a.name.upper(), getattr(a, "help", None) or "") for a in arguments]
    rows += [(", ".join([*o.opts, *o.secondary_opts]), with_default(o)) for o in options]
    yield from table(rows)


def with_default(option: Any) -> str:
    """Return the help of an option, with its default where that is worth saying."""
    default = option.default
    if option.required:
        return f"{option.help or ''} Needed."
    if default in (None, False, [], ()) or callable(default):
        return option.help or ""
    shown = ", ".join(map(str, default)) if isinstance(default, list | tuple) else default
    return f"{option.help or ''} Default: `{shown}`."


def table(rows: list[tuple[str, str]]) -> list[str]:
    """Return lines of a table with two columns."""
    lines = ["| option | does |", "| --- | --- |"]
    for name, text in rows:
        text = text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
        lines.append(f"| `{name}` | {text} |")
    return [*lines, ""]


def first_paragraph(text: str | None) -> str:
    """Return the first paragraph of a docstring."""
    return inspect.cleandoc(text or "").partition("\n\n")[0]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives."""
    app.add_directive("commands", Commands)
    app.add_directive("tasks", TaskOptions)
    return {"parallel_read_safe": True}
