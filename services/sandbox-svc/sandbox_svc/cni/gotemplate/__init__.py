"""Go's text/template, as far as a configuration template can need it, and as strict as the original.

containerd's `conf_template` is such a template. The libraries for it on PyPI embed a Go runtime or have been left
alone since 2019; the language is small.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bulkhead.errors import InvalidArgument
from sandbox_svc.cni.gotemplate import syntax
from sandbox_svc.cni.gotemplate.functions import FUNCTIONS, Refused, text, truth


def render(source: str, data: Mapping[str, Any]) -> str:
    """Return the template filled with data (its "." ); InvalidArgument names the line and what is wrong there."""
    nodes = syntax.parse(source, ("and", "or", *FUNCTIONS))
    return "".join(_Frame(data).run(nodes))


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Frame:
    """The dot and the variables at one point of the execution; inner frames see the outer ones' variables."""

    def __init__(self, dot: Any, outer: "_Frame | None" = None) -> None:
        self.dot = dot
        self.outer = outer
        self.variables: dict[str, Any] = {} if outer else {"$": dot}

    def run(self, nodes: Sequence[syntax.Node]) -> Iterator[str]:
        for node in nodes:
            match node:
                case syntax.Text():
                    yield node.text
                case syntax.Pipeline():
                    value = self.assign(node)
                    if not node.variables:
                        yield text(value)
                case syntax.Branch():
                    yield from self.branch(node)
                case syntax.Jump():
                    raise _Break if node.kind == "break" else _Continue

    def branch(self, node: syntax.Branch) -> Iterator[str]:
        inner = _Frame(self.dot, self)
        if node.kind == "range":
            yield from inner.loop(node)
            return
        value = inner.assign(node.pipeline)
        if not truth(value):
            yield from inner.run(node.otherwise)
            return
        if node.kind == "with":
            inner.dot = value
        yield from inner.run(node.body)

    def loop(self, node: syntax.Branch) -> Iterator[str]:
        items = _items(self.evaluate(node.pipeline), node.pipeline.line)
        if not items:
            yield from self.run(node.otherwise)
        for item in items:
            inner = _Frame(item[1], self)
            names = node.pipeline.variables
            for name, value in zip(names, item[2 - len(names) :] if names else (), strict=True):
                inner.set(name, value, declare=node.pipeline.declares, line=node.pipeline.line)
            try:
                yield from inner.run(node.body)
            except _Break:
                return
            except _Continue:
                continue

    def assign(self, pipeline: syntax.Pipeline) -> Any:
        """Return a pipeline's value, and store it if the pipeline begins with a variable."""
        value = self.evaluate(pipeline)
        for name in pipeline.variables:
            self.set(name, value, declare=pipeline.declares, line=pipeline.line)
        return value

    def set(self, name: str, value: Any, *, declare: bool, line: int) -> None:
        (self if declare else self.holder(name, line)).variables[name] = value

    def holder(self, name: str, line: int) -> "_Frame":
        """Return the innermost frame that has a variable."""
        frame: _Frame | None = self
        while frame is not None and name not in frame.variables:
            frame = frame.outer
        if frame is None:
            syntax.fail(line, f'undefined variable "{name}"')
        return frame

    def evaluate(self, pipeline: syntax.Pipeline) -> Any:
        value: tuple[Any, ...] = ()
        for command in pipeline.commands:
            value = (self.command(command, value, pipeline.line),)
        return value[0]

    def command(self, command: Sequence[syntax.Operand], piped: tuple[Any, ...], line: int) -> Any:
        head, *rest = command
        if isinstance(head, syntax.Function) and head.name in ("and", "or"):
            return self.decide(head, rest, piped)
        if isinstance(head, syntax.Function):
            return _call(head, [*(self.operand(operand) for operand in rest), *piped])
        if rest or piped:
            syntax.fail(line, "arguments given to what is not a function")
        if isinstance(head, syntax.Literal) and head.value is None:
            syntax.fail(line, "nil is not a command")
        return self.operand(head)

    def decide(self, head: syntax.Function, operands: Sequence[syntax.Operand], piped: tuple[Any, ...]) -> Any:
        """Return the value that decides an `and` or `or`; what follows it is not evaluated."""
        if not operands and not piped:
            syntax.fail(head.line, f"{head.name}: wrong number or kind of arguments")
        value: Any = None
        for value in itertools.chain(map(self.operand, operands), piped):
            if truth(value) is (head.name == "or"):
                break
        return value

    def operand(self, operand: syntax.Operand) -> Any:
        match operand:
            case syntax.Literal():
                return operand.value
            case syntax.Function():
                return _call(operand, [])
            case syntax.Access():
                return _lookup(self.base(operand), operand.fields, operand.line)

    def base(self, access: syntax.Access) -> Any:
        if isinstance(access.base, syntax.Pipeline):
            return self.evaluate(access.base)
        if access.base == ".":
            return self.dot
        return self.holder(access.base, access.line).variables[access.base]


def _call(function: syntax.Function, arguments: Sequence[Any]) -> Any:
    try:
        return FUNCTIONS[function.name](*arguments)
    except Refused as error:
        syntax.fail(function.line, str(error))
    except (TypeError, IndexError):
        syntax.fail(function.line, f"{function.name}: wrong number or kind of arguments")


def _lookup(value: Any, fields: Sequence[str], line: int) -> Any:
    for name in fields:
        if not isinstance(value, Mapping) or name not in value:
            known = f" (there are {', '.join(value)})" if isinstance(value, Mapping) else ""
            syntax.fail(line, f"no field .{name}{known}")
        value = value[name]
    return value


def _items(value: Any, line: int) -> list[tuple[Any, Any]]:
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(value)]
    if value is not None and not isinstance(value, list | tuple):
        syntax.fail(line, f"range cannot go through {text(value)}")
    return list(enumerate(value or ()))


__all__ = ["InvalidArgument", "render"]
