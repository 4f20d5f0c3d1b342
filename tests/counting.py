"Runs a notebook with nbdev's own `test_nb` and counts the assertions that really ran"
import ast
import re
from pathlib import Path

import nbdev.test
from execnb.shell import CaptureShell
from fastcore import test as fastcore_test

NBS = Path(__file__).parent.parent/'nbs'
NOTEBOOKS = [p for p in sorted(NBS.rglob('*.ipynb')) if not any(part[0] in '._' for part in p.relative_to(NBS).parts)]
OFF = ('slow', 'cuda', 'net')
CHECKS = re.compile('|'.join([r'assert_\w+', *(name for name in fastcore_test.__all__ if name != 'nequals')]))


def asserts(node):
    "Is the statement an `assert` of something that can fail, or a call such as `test_eq(a, b)` or `with expect_fail():`?"
    if isinstance(node, ast.Assert): return not isinstance(node.test, ast.Constant)
    calls = [node.value] if isinstance(node, ast.Expr) else [item.context_expr for item in node.items]
    names = [getattr(c.func, 'id', getattr(c.func, 'attr', '')) for c in calls if isinstance(c, ast.Call)]
    return any(CHECKS.fullmatch(name) for name in names)


class TickAfterAsserts(ast.NodeTransformer):
    "Put a `_tick()` after each assertion: it is reached only where the assertion ran and held"
    def visit_Assert(self, node):
        self.generic_visit(node)
        if not asserts(node): return node
        tick = ast.Expr(ast.Call(ast.Name('_tick', ast.Load()), [], []))
        return [node, ast.fix_missing_locations(ast.copy_location(tick, node))]
    visit_Expr = visit_With = visit_Assert


class CountingShell(CaptureShell):
    "nbdev's shell with a count of assertions; those inside exported code guard the library, they do not test it"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        CountingShell.last, self.count, self.user_ns['_tick'] = self, 0, self.tick

    def tick(self): self.count += 1

    def cell(self, cell, **kwargs):
        exported = any(d.startswith('export') for d in cell.directives_)
        self.ast_transformers = [] if exported else [TickAfterAsserts()]
        return super().cell(cell, **kwargs)


def run_notebook(path, flags=()):
    "Run the notebook at `path`; returns (what went wrong or '', number of assertions that ran)"
    nbdev.test.CaptureShell, CountingShell.last = CountingShell, None
    passed, _ = nbdev.test.test_nb(path, skip_flags=OFF, force_flags=flags, showerr=False)
    shell = CountingShell.last
    return ('' if passed else shell.prettytb(fname=path)), getattr(shell, 'count', 0)
