"""The grammar of Go's text/template (https://pkg.go.dev/text/template): source text to a tree of nodes.

Left out, and refused by name: define, template, block and complex numbers. A configuration template has no use for
them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Union

from bulkhead.errors import InvalidArgument

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Token:
    """One word of an action; spaced says whether white space stood before it."""

    kind: str
    text: str
    line: int
    spaced: bool = False


@dataclass(frozen=True)
class Text:
    """Text between actions."""

    text: str


@dataclass(frozen=True)
class Literal:
    """A constant."""

    value: Value


@dataclass(frozen=True)
class Access:
    """A value and the fields looked up in it: `.A.B`, `$x.A`, `(index .L 0).A`; base is ".", "$x" or a pipeline."""

    base: Union[str, "Pipeline"]
    fields: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Function:
    """The name of a function, as an operand."""

    name: str
    line: int


Operand = Literal | Access | Function


@dataclass(frozen=True)
class Pipeline:
    """`$a, $b := command | command`: each command is a function or value with arguments."""

    commands: tuple[tuple[Operand, ...], ...]
    line: int
    variables: tuple[str, ...] = ()
    declares: bool = False


@dataclass(frozen=True)
class Branch:
    """if, range or with: the pipeline, what to do with it, and what to do without."""

    kind: str
    pipeline: Pipeline
    body: tuple["Node", ...]
    otherwise: tuple["Node", ...] = ()


@dataclass(frozen=True)
class Jump:
    """break or continue."""

    kind: str


Node = Text | Pipeline | Branch | Jump

_TOKEN = re.compile(
    r"""(?P<end>-?\}\})|(?P<declare>:=)|(?P<mark>[=|(),])
    |(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<char>'(?:[^'\\\n]|\\.)+')
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?))
    |(?P<variable>\$\w*)|(?P<field>\.[^\W\d]\w*)|(?P<dot>\.)|(?P<word>[^\W\d]\w*)""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"\{\{(-\s)?\s*/\*.*?\*/\s*?(\s-)?\}\}", re.DOTALL)
_SPACE = " \t\r\n"
_WORDS: dict[str, Value] = {"true": True, "false": False, "nil": None}
_ESCAPE = re.compile(r'\\(?:([abfnrtv\\\'"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3}))')
_ESCAPES = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))


def fail(line: int, message: str) -> NoReturn:
    """Refuse a template: the message begins with the line."""
    raise InvalidArgument(f"line {line}: {message}")


def parse(source: str, functions: Sequence[str]) -> tuple[Node, ...]:
    """Return the template's nodes; InvalidArgument names line and reason."""
    return _Parser(list(_pieces(source)), frozenset(functions)).template()


def _pieces(source: str) -> Iterator[Text | list[Token]]:
    """Yield the texts and the actions of a template, trimmed where an action asks for it."""
    position, trim = 0, False
    while True:
        begin = source.find("{{", position)
        text = source[position : begin if begin >= 0 else len(source)]
        text = text.lstrip(_SPACE) if trim else text
        if begin < 0:
            yield Text(text)
            return
        trims_left = re.match(r"\{\{-\s", source[begin:]) is not None
        yield Text(text.rstrip(_SPACE) if trims_left else text)
        if comment := _COMMENT.match(source, begin):
            position, trim = comment.end(), comment[2] is not None
            continue
        tokens, position, trim = _action(source, begin + (3 if trims_left else 2))
        yield tokens


def _action(source: str, position: int) -> tuple[list[Token], int, bool]:
    """Return an action's tokens, the place after it, and whether the text there is to be trimmed."""
    tokens: list[Token] = []
    while True:
        start = position
        while position < len(source) and source[position].isspace():
            position += 1
        line = source.count("\n", 0, position) + 1
        found = _TOKEN.match(source, position)
        if not found or not found.lastgroup:
            shown = source[position : position + 10].partition("\n")[0]
            fail(line, f"unexpected {shown!r} in an action" if shown else "unclosed action")
        position = found.end()
        if found.lastgroup == "end":
            trim = found[0][0] == "-"
            if trim and found.start() == start:
                fail(line, 'white space is needed before "-}}"')
            return tokens, position, trim
        tokens.append(Token(found.lastgroup, found[0], line, found.start() > start))


@dataclass
class _Parser:
    pieces: list[Text | list[Token]]
    functions: frozenset[str]
    tokens: list[Token] = field(default_factory=list)
    line: int = 1
    loops: int = 0

    def template(self) -> tuple[Node, ...]:
        nodes, stop = self.nodes()
        if stop:
            fail(self.line, f"unexpected {{{{{stop}}}}}")
        return nodes

    def nodes(self) -> tuple[tuple[Node, ...], str]:
        """Return the nodes up to {{else}}, {{end}} or the end of the template, and which of them it was."""
        nodes: list[Node] = []
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, Text):
                nodes += [piece] if piece.text else []
                continue
            self.tokens = piece
            self.line = piece[0].line if piece else self.line
            word = piece[0].text if piece and piece[0].kind == "word" else ""
            if word in ("else", "end"):
                self.tokens.pop(0)
                return tuple(nodes), word
            nodes.append(self.action(word))
        return tuple(nodes), ""

    def action(self, word: str) -> Node:
        if word in ("if", "range", "with"):
            self.tokens.pop(0)
            return self.branch(word)
        if word in ("break", "continue"):
            if not self.loops:
                fail(self.line, f"{word} outside of range")
            self.tokens.pop(0)
            self.finish()
            return Jump(word)
        if word in ("define", "template", "block"):
            fail(self.line, f"{word} is not supported here")
        return self.whole_pipeline()

    def branch(self, kind: str) -> Branch:
        line, pipeline = self.line, self.whole_pipeline(pair=kind == "range")
        self.loops += kind == "range"
        body, stop = self.nodes()
        self.loops -= kind == "range"
        if stop == "else" and self.tokens:
            chained = self.tokens.pop(0).text
            if chained != kind or kind == "range":
                fail(self.line, f"unexpected {chained!r} after else")
            return Branch(kind, pipeline, body, (self.branch(kind),))
        self.finish()
        otherwise, stop = self.nodes() if stop == "else" else ((), stop)
        self.finish()
        if stop != "end":
            fail(line, f"{kind} without end")
        return Branch(kind, pipeline, body, otherwise)

    def whole_pipeline(self, *, pair: bool = False) -> Pipeline:
        pipeline = self.pipeline(pair=pair)
        self.finish()
        return pipeline

    def finish(self) -> None:
        if self.tokens:
            fail(self.line, f"unexpected {self.tokens[0].text!r}")

    def pipeline(self, *, pair: bool = False) -> Pipeline:
        line, variables, declares = self.line, self.assignment(pair=pair), False
        if variables:
            declares = self.tokens.pop(0).kind == "declare"
        commands = [self.command()]
        while self.tokens and self.tokens[0].text == "|":
            self.tokens.pop(0)
            commands.append(self.command())
        if any(isinstance(command[0], Literal) for command in commands[1:]):
            fail(line, "a constant cannot take a pipeline's value")
        return Pipeline(tuple(commands), line, variables, declares)

    def assignment(self, *, pair: bool) -> tuple[str, ...]:
        """Take `$a` or (in range) `$a, $b` before := or =, and leave that sign."""
        shape = [token.text if token.kind == "mark" else token.kind for token in self.tokens[:4]]
        for length, names in ((2, ["variable"]), (4, ["variable", ",", "variable"])):
            if shape[: length - 1] == names and len(shape) >= length and shape[length - 1] in ("declare", "="):
                if length == 4 and not pair:
                    fail(self.line, "two variables make sense in range only")
                taken = [self.tokens.pop(0) for _ in names]
                return tuple(token.text for token in taken if token.kind == "variable")
        return ()

    def command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while self.tokens and self.tokens[0].text not in ("|", ")"):
            operands.append(self.operand())
        if not operands:
            fail(self.line, "missing value")
        return tuple(operands)

    def operand(self) -> Operand:
        token = self.tokens.pop(0)
        match token.kind:
            case "string" | "char" | "number":
                return Literal(_constant(token))
            case "word" if token.text in _WORDS:
                return Literal(_WORDS[token.text])
            case "word" if token.text in self.functions:
                return Function(token.text, token.line)
            case "word":
                fail(token.line, f'function "{token.text}" not defined')
            case "field":
                return Access(".", (token.text[1:], *self.fields()), token.line)
            case "dot" | "variable":
                return Access(token.text, self.fields(), token.line)
            case "mark" if token.text == "(":
                inner = self.pipeline()
                if not self.tokens or self.tokens.pop(0).text != ")":
                    fail(token.line, "unclosed parenthesis")
                return Access(inner, self.fields(), token.line)
        fail(token.line, f"unexpected {token.text!r}")

    def fields(self) -> tuple[str, ...]:
        """Take the fields that follow without white space."""
        names = []
        while self.tokens and self.tokens[0].kind == "field" and not self.tokens[0].spaced:
            names.append(self.tokens.pop(0).text[1:])
        return tuple(names)


def _constant(token: Token) -> Value:
    if token.kind == "number":
        text = token.text.replace("_", "")
        return float(text) if re.search(r"[.eE]", text) and "x" not in text.lower() else int(text, 0)
    if token.text[0] == "`":
        return token.text[1:-1]
    text = _ESCAPE.sub(_unescape, token.text[1:-1])
    return ord(text) if token.kind == "char" and len(text) == 1 else text


def _unescape(found: re.Match[str]) -> str:
    letter, *codes, octal = found.groups()
    if letter:
        return _ESCAPES[letter]
    return chr(int(octal, 8) if octal else int(next(code for code in codes if code), 16))
