"""Show the package's code in a notebook or page: the code that is read is the code that runs."""

import ast
import inspect
import textwrap


class Source:
    """The source of classes or functions, highlighted where Markdown is shown, plain elsewhere."""

    def __init__(self, *objects, docstrings=True):
        sources = [textwrap.dedent(inspect.getsource(item)).strip() for item in objects]
        self.text = "\n\n".join(sources if docstrings else map(_without_docstrings, sources))

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/markdown": f"```python\n{self.text}\n```", "text/plain": self.text}


def _without_docstrings(source):
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [None] * (text.end_lineno - text.lineno + 1)
    return "\n".join(line for line in lines if line is not None)


def show_source(*objects, docstrings=True):
    """Return the source code of functions, methods or classes of the package, to be shown as it stands.

    Args:
        *objects: one or more functions, methods or classes.
        docstrings: show their documentation, too. Default True.

    Raises:
        TypeError: something has no Python source, such as a number or a built-in function.
    """
    return Source(*objects, docstrings=docstrings)
