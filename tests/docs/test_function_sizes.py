"""Limits on the length and complexity of functions."""

import ast
from pathlib import Path

import fedjax_lora

PACKAGE = Path(fedjax_lora.__file__).parent

LONGEST_BODY = 50
"""Lines of a function without its signature, docstring and the functions defined in it."""

MOST_COMPLEX = 0.015
"""Share of functions whose cyclomatic complexity may be above 10."""

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> list[tuple[str, Function]]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, Function):
                found.append((f"{file.relative_to(PACKAGE)}:{node.lineno} {node.name}", node))
    return found


def body_lines(node: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    first = node.body[1] if ast.get_docstring(node) is not None and node.body[1:] else node.body[0]
    return (node.end_lineno or first.lineno) - first.lineno + 1


def complexity(node: ast.AST) -> int:
    """McCabe's number: one more than the decisions, those of nested functions included."""
    total = 1
    for child in ast.walk(node):
        if isinstance(child, BRANCHES):
            total += 1
        elif isinstance(child, ast.BoolOp):
            total += len(child.values) - 1
        elif isinstance(child, ast.comprehension):
            total += 1 + len(child.ifs)
        elif isinstance(child, ast.Match):
            total += len(child.cases)
    return total


def test_function_bodies_have_at_most_50_lines():
    long = [
        f"{name}: {body_lines(node)}"
        for name, node in functions()
        if body_lines(node) > LONGEST_BODY
    ]
    assert long == []


def test_few_functions_are_complex():
    found = functions()
    complex_ones = [f"{name}: {complexity(node)}" for name, node in found if complexity(node) > 10]
    assert len(complex_ones) <= MOST_COMPLEX * len(found), complex_ones


def test_complexity_counts_decisions():
    (node,) = ast.parse("def f(x):\n    if x and x > 1:\n        return [y for y in x if y]").body
    assert complexity(node) == 1 + 1 + 1 + 2
