"""Numbers, tables and pages as text: one way of writing a count, an interval, a table, a template.

count(21.4e3), number(0.0078), with_interval(0.5, 0.4, 0.6)  # 21.4K 7.8e-3 0.50 [0.40, 0.60]
write_table(Path("cells.csv"), table)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from data_injection.errors import ConfigError
from data_injection.files import replace_file

if TYPE_CHECKING:
    from jinja2 import Template

TABLE_SUFFIXES = (".csv", ".parquet")


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


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; no text is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def template(package: str, name: str, **filters: Callable[[Any], Any]) -> Template:
    """PACKAGE/templates/NAME, of jinja2: every value is escaped, an unknown one is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def check_table_path(path: Path, *, option: str) -> None:
    """Raise ConfigError, before any work, for a table that cannot be written."""
    if path.suffix not in TABLE_SUFFIXES:
        raise ConfigError(f"{option} {path} must end in {' or '.join(TABLE_SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it first")


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as .csv or, under any other name, as Parquet; whole or not at all."""
    if path.suffix == ".csv":
        return replace_file(path, table.to_csv(index=False))
    return replace_file(path, table.to_parquet(index=False))
