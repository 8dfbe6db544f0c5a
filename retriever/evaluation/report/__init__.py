"""The report on an index: one page that says what a pool is, what spoils it, and how well it answers.

gathering.py     what the page says: counts, findings, comparisons
projection.py    the pool in two dimensions
figures.py       what the plots show, as data
page.py          the page: a template, its style and its script
page.*           these three
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from indexes.files import replace_file
from retriever.errors import InvalidInput
from retriever.evaluation.report.gathering import ReportSettings, gather
from retriever.evaluation.report.page import page, plot_library
from retriever.evaluation.report.projection import require_umap
from retriever.example import QueryLike
from retriever.listening import Progress, silent
from retriever.recipes import RecipeLike
from retriever.retriever import Retriever

__all__ = ["ReportSettings", "write_report"]


def write_report(
    retriever: Retriever,
    path: str | Path,
    queries: Iterable[QueryLike] | None = None,
    *,
    recipes: Mapping[str, RecipeLike] | None = None,
    settings: ReportSettings | None = None,
    progress: Progress = silent,
) -> int:
    """Writes the report on an index: one HTML file that needs nothing else and asks the network for nothing.

    The same index, queries and version give the same bytes. The file appears whole or not at all, in place of one that
    is there.

    Args:
        retriever: The index.
        path: Where to write it.
        queries: Queries with their true outputs or labels; None for a sample of the pool's own examples, each asked
            without itself and its near copies. Of an index that is adapted the page then begins with a warning.
        recipes: What is compared, by name; the first is the one whose choices are shown. None for the index's own
            recipe in every mode.
        settings: How much is looked at; default `ReportSettings()`.
        progress: Told the stage, how much of it is done, and how much there is.

    Returns:
        The size of the file in bytes.

    Raises:
        InvalidInput: No folder to write in, no query, or a recipe or option that cannot be used.
        MissingDependency: plotly or Jinja is not installed, or UMAP where the map is by it.
        StorageError: The operating system refuses.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InvalidInput(f"no folder {target.parent} to write {target.name} in", fix="make it first")
    if target.is_dir():
        raise InvalidInput(f"{target} is a folder", expected="the name of a file, such as report.html")
    settings = settings or ReportSettings()
    library = plot_library()  # a package that is missing is told now, not after the work
    if settings.map == "umap":
        require_umap()
    found = gather(retriever, queries, recipes, settings, progress)
    return replace_file(target, [page(found, library).encode()])
