"""Show the package's code in a notebook or page: the code that is read is the code that runs."""

import inspect
import textwrap


class Source:
    """The source of classes or functions, highlighted where Markdown is shown, plain elsewhere."""

    def __init__(self, *objects):
        self.text = "\n\n".join(textwrap.dedent(inspect.getsource(item)).strip() for item in objects)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/markdown": f"```python\n{self.text}\n```", "text/plain": self.text}


def show_source(*objects):
    """Return the source code of functions, methods or classes of the package, to be shown as it stands.

    Args:
        *objects: one or more functions, methods or classes.

    Raises:
        TypeError: something has no Python source, such as a number or a built-in function.
    """
    return Source(*objects)
