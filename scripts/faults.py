"""Return small faults for the functions of a module, as replacements of single nodes of its syntax tree.

A fault that changes only the wording of a text is left out, because tests assert codes and data. So are
f-strings, annotations, decorators, default arguments, and everything outside of functions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

Function = ast.FunctionDef | ast.AsyncFunctionDef

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
# Their tests are negated, unless the test itself has faults of these kinds.
NEGATED_ELSEWHERE = (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)


@dataclass(frozen=True, slots=True)
class Fault:
    """One node of a function that another one takes the place of."""

    function: str
    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    replacement: ast.AST

    def __str__(self) -> str:
        return f"{self.node.lineno} {self.text}"  # type: ignore[attr-defined]

    @property
    def text(self) -> str:
        """Return the fault without its line."""
        before, after = (_one_line(ast.unparse(each)) for each in (self.node, self.replacement))
        return f"{self.function}: {before}  ->  {after}"

    def apply(self) -> None:
        """Change the tree. There is no way back."""
        ast.copy_location(self.replacement, self.node)
        ast.fix_missing_locations(self.replacement)
        if self.index is None:
            setattr(self.parent, self.field, self.replacement)
        else:
            getattr(self.parent, self.field)[self.index] = self.replacement


def faults(tree: ast.Module) -> list[Fault]:
    """Return every fault of a module's functions, in the order of the source."""
    return [fault for name, function in functions(tree) for fault in _faults_below(name, function)]


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Yield the functions of a module and the methods of its classes with their qualified names."""
    for statement in tree.body:
        if isinstance(statement, Function):
            yield statement.name, statement
        if isinstance(statement, ast.ClassDef):
            for each in statement.body:
                if isinstance(each, Function):
                    yield f"{statement.name}.{each.name}", each


def code_of(module: CodeType, name: str) -> CodeType:
    """Return the code of a function of a compiled module, by its qualified name."""
    found = module
    for part in name.split("."):
        # A property and its setter have one name; the first is the one that counts.
        found = next(each for each in found.co_consts if isinstance(each, CodeType) and each.co_name == part)
    return found


def _faults_below(name: str, parent: ast.AST) -> Iterator[Fault]:
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "args") and not isinstance(parent, ast.Call):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr) or _is_text(node):
                continue
            for replacement in _replacements(parent, field, node):
                yield Fault(name, parent, field, index, node, replacement)
            yield from _faults_below(name, node)


def _replacements(parent: ast.AST, field: str, node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(parent, ast.comprehension) and field == "ifs":
        yield ast.Constant(True)
    if field == "test" and not isinstance(node, NEGATED_ELSEWHERE) and isinstance(node, ast.expr):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            yield ast.Compare(node.left, [COMPARISONS[type(operator)]()], node.comparators)
        case ast.BoolOp(values=values):
            for left_out in values:
                rest = [each for each in values if each is not left_out]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() if type(node.op) in OPERATORS:
            yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=str(value)) if " " not in value:
            yield ast.Constant(f"{value}X")
        case ast.Constant(value=bytes(value)) if b" " not in value:
            yield ast.Constant(value + b"X")
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield ast.Pass()
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()


def _is_text(node: ast.AST) -> bool:
    """Return whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else f"{line[:90]}…"
