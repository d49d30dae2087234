"""A metric that reads a Python program out of an answer. Nothing is run."""

from __future__ import annotations

import ast
import re
import warnings

FENCED = re.compile(r"```[ \t]*(?:python\d?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class _OneForm(ast.NodeTransformer):
    """Removes what does not change what a program does: docstrings, annotations, names of
    variables. Variables are numbered in the order in which they appear.
    """

    def __init__(self, variables: set[str]):
        self.variables = variables
        self.numbered: dict[str, str] = {}

    def _number(self, name: str) -> str:
        if name not in self.variables:
            return name
        return self.numbered.setdefault(name, f"v{len(self.numbered)}")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(arg=self._number(node.arg))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value, lineno=0))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(id=self._number(node.id), ctx=node.ctx)


def _variables(tree: ast.AST) -> set[str]:
    """Names that a program itself gives to arguments and values."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def program_in(text: str) -> str | None:
    """The functions and classes of an answer, in a form that programs of one logic share.

    They are looked for in the first fenced block, else in the whole text. Comments, layout,
    docstrings, annotations, imports, calls at the top level and the names of variables are left
    out. None where Python cannot parse it or nothing is defined.
    """
    fenced = FENCED.search(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            tree = ast.parse(fenced[1] if fenced else text)
        tree.body = [node for node in tree.body if isinstance(node, DEFINITIONS)]
        return ast.unparse(_OneForm(_variables(tree)).visit(tree)) or None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def same_program(prediction: str, reference: str) -> float:
    """1 when both define the same program, as `program_in` reads it."""
    found = program_in(prediction)
    return float(found is not None and found == program_in(reference))
