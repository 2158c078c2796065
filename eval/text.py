"""Numbers, tables and pages as text: one way of writing a count, an interval, a table, a template.

count(21.4e3), number(0.0078), with_interval(0.5, 0.4, 0.6)  # 21.4K 7.8e-3 0.50 [0.40, 0.60]
write_table(Path("cells.csv"), table)
print_table(new_table("run", numbers=("step", "loss")), Console())
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_injection.errors import ConfigError
from data_injection.files import check_writable, replaced

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Template
    from rich.console import Console
    from rich.table import Column, Table

TABLE_SUFFIXES = (".csv", ".parquet")
LEAST_NAME = 12
"""Characters to which a name is folded on a narrow terminal, before numbers move below."""

SHORTEST_NAME = 4
"""Where one number alone leaves no more; on a narrower terminal lines are longer than it."""


def count(value: float) -> str:
    """A count in three digits: 950, 21.4K, 3.7M, 210B, 1.4T."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if size <= value < 1e15:  # beyond, an exponent says more than a thousand trillions
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def number(value: float, digits: int = 3) -> str:
    """A rate or an exposure as people write it: 1,024, 12, 0.48, 7.8e-3."""
    if not math.isfinite(value):
        return "?"
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 0.01 or value == 0:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def plural(num: int, noun: str) -> str:
    """ "1 row", "2 rows", "1,024 rows"."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def with_interval(value: float, low: float, high: float, *, digits: int = 2) -> str:
    """ "0.50 [0.40, 0.60]"; "-" for a value that is undefined."""
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> str:
    """A table in Markdown, all but the first column to the right if they are numbers; no text is
    escaped."""
    lines = [head, ["---"] + ["---:" if numbers else "---"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def new_table(
    *names: str, numbers: Sequence[str] = (), beside: Sequence[str] = (), title: str | None = None
) -> Table:
    """A table for `print_table`: columns of names (folded), of numbers (whole), of words after."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name in beside:
        table.add_column(name, overflow="fold")
    return table


def print_table(table: Table, console: Console) -> None:
    """The one rule of width: no name is left out and no number cut.

    Not a terminal: every cell on one line, however wide. On a terminal names are folded; numbers
    that still find no room stand in a further table beside the same names. Cells are no markup.
    """
    from rich.measure import Measurement
    from rich.text import Text

    if isinstance(table.title, str):
        table.title = Text(table.title, style="table.title")
    options = console.options.update(max_width=100_000, markup=False)
    for part in _parts(table, console) if console.is_terminal else [table]:
        natural = Measurement.get(console, options, part).maximum
        if not console.is_terminal or not _fits(part, console, name=SHORTEST_NAME):
            part.width = natural
        console.print(part, crop=False, soft_wrap=False, markup=False)


def _parts(table: Table, console: Console) -> list[Table]:
    """The table cut between columns of numbers, so that each part has room on the terminal."""
    numbers = [column for column in table.columns if column.justify == "right"]
    parts: list[list[Column]] = [[]]
    for column in numbers:
        if parts[-1] and not _fits(_chosen(table, [*parts[-1], column]), console):
            parts.append([])
        parts[-1].append(column)
    cut = [_chosen(table, part) for part in parts]
    for part in cut[1:]:
        part.title = None
    for part in cut[:-1]:
        part.caption = None
    return cut


def _chosen(table: Table, numbers: Sequence[Column]) -> Table:
    part = copy.copy(table)
    kept = [c for c in table.columns if c.justify != "right" or any(c is one for one in numbers)]
    part.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    return part


def _fits(table: Table, console: Console, *, name: int = LEAST_NAME) -> bool:
    """Whether all numbers have room beside names folded to so many characters."""
    from rich.measure import Measurement

    least = copy.copy(table)
    least.columns = [
        c if c.justify == "right" else replace(c, max_width=name) for c in table.columns
    ]
    options = console.options.update(max_width=100_000, markup=False)
    return Measurement.get(console, options, least).maximum <= console.width


def template(
    package: str, name: str, *, escape: bool = True, **filters: Callable[[Any], Any]
) -> Template:
    """PACKAGE/templates/NAME, of jinja2: values are escaped, an unknown one is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def check_target(path: Path | None, option: str, *, suffixes: Sequence[str] = ()) -> None:
    """Raise ConfigError, before any work, for a file (if one is asked for) that cannot be written.

    suffixes: those that its name may end in; for a table TABLE_SUFFIXES.
    """
    if path is None:
        return
    rule, remedy = "", ""
    if path.is_dir():
        rule = "must be a file and not a folder"
    elif suffixes and path.suffix not in suffixes:
        rule = f"must end in {' or '.join(suffixes)}"
    elif not path.parent.is_dir():
        rule = f"must be in a folder: there is no folder {path.parent}"
        remedy = "make it first"
    if rule:
        raise ConfigError(key=option, value=str(path), rule=rule, remedy=remedy)
    check_writable(path.parent, option)  # a file is replaced, whosever it is


def spreadsheet_safe(table: pd.DataFrame) -> pd.DataFrame:
    """A spreadsheet computes a cell that begins with = + - or @: such names get a quote before."""

    import pandas as pd

    def formula(value: Any) -> bool:
        return isinstance(value, str) and value[:1] in {*"=+-@\t\r"}

    words = [name for name, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    unsafe = {str(name): table[name] for name in words if any(map(formula, table[name]))}
    quoted = {name: [f"'{v}" if formula(v) else v for v in unsafe[name]] for name in unsafe}
    return table.assign(**quoted)


def write_table(
    path: Path, table: pd.DataFrame, *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a table as .csv or, under any other name, as Parquet (with metadata of its own, which
    a .csv cannot hold); whole or not at all."""
    with replaced(path) as temporary:
        if path.suffix == ".csv":
            spreadsheet_safe(table).to_csv(temporary, index=False)
            return path
        import pyarrow as pa
        from pyarrow import parquet

        arrow = pa.Table.from_pandas(table, preserve_index=False)
        told = (arrow.schema.metadata or {}) | dict(metadata or {})
        parquet.write_table(arrow.replace_schema_metadata(told), temporary)
    return path
