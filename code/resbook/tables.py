"""Tables without pandas: as text for a terminal, as HTML for a page. Numbers align right, first columns left."""

from html import escape


class Table:
    """Something shown as a table: subclasses give ``header()``, ``cells()`` (rows of strings) and ``caption()``.

    The first ``labels`` columns are text and align left.
    """

    labels = 1

    def __str__(self):
        rows = [self.header(), *self.cells()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(self._align(i, cell, width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*(line.rstrip() for line in lines), self.caption()])

    __repr__ = __str__

    def _align(self, column, cell, width):
        return cell.ljust(width) if column < self.labels else cell.rjust(width)

    def _repr_html_(self):
        head = "".join(f'<th scope="col"{self._style(i)}>{escape(cell)}</th>' for i, cell in enumerate(self.header()))
        body = "".join(f"<tr>{''.join(self._cell(i, cell) for i, cell in enumerate(row))}</tr>" for row in self.cells())
        return (
            f'<div class="rb rb-scroll" tabindex="0" role="region" aria-label="{escape(self.caption())}">'
            f'<table class="rb-table"><caption>{escape(self.caption())}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _cell(self, column, text):
        tag = 'th scope="row"' if column == 0 else "td"
        return f"<{tag}{self._style(column)}>{escape(text)}</{tag[:2]}>"

    def _style(self, column):
        return f' style="text-align:{"left" if column < self.labels else "right"}"'
