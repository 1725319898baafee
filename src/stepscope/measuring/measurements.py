"""What `measure` gives: the measurements of several directions at one point, as a dictionary that shows a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepscope.errors import require
from stepscope.shown import format_number, html_table, text_table

if TYPE_CHECKING:
    from stepscope.measuring.measurement import Measurement

_COLUMNS = ("sharpness", "correlation", "edge_ratio", "best_step", "best_decrease")


class Measurements(dict[str, "Measurement"]):
    """``{label: measurement}``; shown as a table of the main numbers, in Python and in a notebook.

    Example:
        >>> import torch
        >>> from stepscope.measuring import measure
        >>> from stepscope.objective import Objective
        >>> x = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.tensor([3.0, 4.0]))})
        >>> f = Objective(x, lambda m, b: 0.5 * (b * m["w"] ** 2).sum(), [torch.tensor([1.0, 100.0])], lambda b: 1)
        >>> measure(f, {"one": {"w": torch.tensor([-1.0, 0.0])}, "other": {"w": torch.tensor([0.0, -1.0])}})
               sharpness  correlation  edge ratio
        one         1.00     −0.00750       0.333
        other        100        −1.00       0.250
    """

    def _table(self) -> tuple[list[str], list[list[str]]]:
        names = [name for name in _COLUMNS if any(getattr(each, name) is not None for each in self.values())]
        rows = [[label, *(format_number(getattr(each, name)) for name in names)] for label, each in self.items()]
        return ["", *(name.replace("_", " ") for name in names)], rows

    def __repr__(self) -> str:
        return text_table(*self._table())

    def _repr_html_(self) -> str:
        return html_table(*self._table())

    def to_pandas(self) -> Any:
        """All numbers as a `pandas.DataFrame`: a row for each direction; landscapes and breakdowns are left out.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [
            {name: value for name, value in each.record().items() if not isinstance(value, dict)}
            for each in self.values()
        ]
        return require("pandas", "pandas").DataFrame(rows, index=list(self)).dropna(axis="columns", how="all")
