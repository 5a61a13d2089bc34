"""Which module imports which, read from the source: nothing is imported for it."""

import ast


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(source, for_types=False):
    """List what a module imports, functions included: `a.b` and, for names imported from it, `a.b.name`.

    Args:
        for_types: also what only type checkers import.
    """
    found = set()

    def visit(node):
        nodes = node.orelse if is_type_checking(node) and not for_types else ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in nodes:
            visit(child)

    visit(ast.parse(source))
    return found


def circles(graph):
    """Return the modules that import themselves, through others.

    Args:
        graph: for each module, the set of those that it imports.
    """

    def reach(module):
        seen, todo = set(), [module]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    return {module for module in graph if module in reach(module)}
