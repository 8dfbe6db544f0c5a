"""Retriever: an index on disk, as its users see it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypedDict, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from indexes import generation as generations
from retriever import writing
from retriever.build import Progress
from retriever.embedders import EmbedderSource
from retriever.embedders.base import unit_rows
from retriever.errors import IndexCorrupt, IndexMissing, InvalidInput
from retriever.example import Example, Json, as_query
from retriever.formats import BadRow, BadRowLog, Fields, Limits, Source, read_examples
from retriever.keys import Key
from retriever.pool import Pool
from retriever.prompting import Prompt, Template, TokenCounter, assemble, load_counter, load_template
from retriever.prompting.assembler import Form
from retriever.prompting.text import Collisions
from retriever.query_encoder import QueryEncoder
from retriever.ranking.recipe import Options, Recipe
from retriever.selection import Selection
from retriever.selector import Selector
from retriever.settings import IndexSettings
from retriever.snapshot import Base, Snapshot

QueryLike: TypeAlias = "str | Mapping[str, Json] | Example"
RecipeLike: TypeAlias = "Recipe | Mapping[str, Json] | str | Path | None"
Note: TypeAlias = Callable[[str], None]

COMPACT_AFTER = 1000
"""Changes since the last generation after which `add` and `remove` publish a new one."""

_OPEN_ATTEMPTS = 10
_SHOWN = ("format", "created_by", "settings", "embedder", "fusion")


def _log(line: str) -> None:
    logging.getLogger("retriever").warning("%s", line)


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is shown unless it is asked for."""


class PromptOptions(TypedDict, total=False):
    """How a prompt is assembled.

    Attributes:
        template: A built-in template's name, a TOML file, or a `Template`; default `io`.
        slots: Values for the template's own placeholders. `labels`, when the template uses it and it is not given, is
            the list of the pool's labels.
        form: Whether the budget is about `messages` (the default) or `text`.
        collisions: What the text form does about data that contains a delimiter: `error` (the default), `escape` or
            `drop`.
        zero_shot: Whether the template's zero-shot line is added when there is no demonstration.
    """

    template: str | Path | Template
    slots: Mapping[str, str]
    form: Form
    collisions: Collisions
    zero_shot: bool


class Retriever:
    """Finds the examples of a pool that help most with a query, and puts them into a prompt.

    Made by `build` or `open`; a context manager. Selections come from one consistent view of the index until `refresh`,
    or an `add` or `remove` of its own, moves on to a newer one. Safe to share between threads.

        with Retriever.open("tickets.index") as retriever:
            for demonstration in retriever.select("my card still has not arrived", k=4):
                print(demonstration.score, demonstration.example.output)
    """

    def __init__(self, path: Path, *, embedder: EmbedderSource | None, trust: bool, note: Note) -> None:
        self.path = path
        self._given = embedder
        self._trust = trust
        self._note = note
        self._changing = threading.RLock()
        self._pool = Pool(writing.pool_path(path)) if writing.pool_path(path).exists() else _no_pool(path)
        try:
            snapshot = self._open_snapshot()
        except BaseException:
            self._pool.close()
            raise
        self._encoder = QueryEncoder(snapshot.base.generation, embedder, note)
        if embedder is not None:
            self._encoder.embedder  # noqa: B018  refuses a wrong one now, not at the first query
        self._selector = Selector(snapshot, self._encoder.queries)

    @classmethod
    def build(
        cls,
        source: Source,
        path: str | Path,
        *,
        input: str = "input",
        output: str | None = "output",
        label: str | None = "label",
        rationale: str | None = "rationale",
        id: str | None = "id",
        task: str | None = "task",
        meta: str | None = "meta",
        format: str | None = None,
        table: str | None = None,
        encoding: str = "utf-8",
        limits: Limits | None = None,
        settings: IndexSettings | None = None,
        embedder: EmbedderSource = "auto",
        weight: float | None = None,
        strict: bool = False,
        overwrite: bool = False,
        on_bad: Callable[[BadRow], None] | None = None,
        note: Note = _log,
        progress: Progress = _silent,
    ) -> Self:
        """Builds an index and opens it.

        Args:
            source: A path, `-` for standard input, an iterable of mappings or examples, or a data frame.
            path: The index directory to make.
            input: Which field is the input: a name, a dotted path, or a `$name` template over several fields.
            output: Which is the output; None for a pool without outputs.
            label: Which is the label.
            rationale: Which is the rationale.
            id: Which is the id.
            task: Which is the task.
            meta: Which holds further fields.
            format: The format of a file; None tells it from the suffix.
            table: The table of a SQLite file.
            encoding: Of a text file.
            limits: How large a row may be; default `Limits()`.
            settings: How examples are indexed; default `IndexSettings()`.
            embedder: A name, `EmbedderSettings`, a function from texts to vectors, or an object with `encode`.
            weight: Share of the dense channel; None calibrates it on the pool.
            strict: Whether a bad row fails the build; otherwise bad rows are set aside and reported.
            overwrite: Whether an index that is there gets these examples instead of its own.
            on_bad: Called with each bad row.
            note: Told in one line what a reader should know; by default the logger `retriever` warns.
            progress: Called with what is being done, how much of it is done, and how much there is.

        Raises:
            InvalidInput: The source cannot be read, the path holds something else, or an option cannot be used.
            BadRows: A bad row under `strict`, or no usable row.
            EmbedderError: The embedder fails.
            IndexLocked: Another process is writing the index.
        """
        fields = Fields(input, output, rationale, label, id, task, meta)
        index = settings or IndexSettings()
        log = BadRowLog()

        def read(sink: Callable[[BadRow], None]) -> Iterator[Example]:
            return read_examples(
                source,
                fields=fields,
                format=format,
                table=table,
                encoding=encoding,
                limits=limits or Limits(),
                usable=Key(index.key).text,
                on_bad=_both(sink, on_bad),
            )

        asked = writing.BuildSettings(index, embedder, weight, strict, overwrite)
        used = writing.build_index(Path(path), read, asked, log=log, note=note, progress=progress)
        if log.count and on_bad is None:
            note(f"{log.count} bad rows were set aside, first {log.rows[0]}")
        return cls(Path(path), embedder=used, trust=True, note=note)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        embedder: EmbedderSource | None = None,
        trust: bool = False,
        note: Note = _log,
    ) -> Self:
        """Opens an index.

        Args:
            path: The index directory.
            embedder: The embedder to use instead of the one the index names; it must give the same vectors.
            trust: Whether to skip the comparison of hashes; sizes are always checked.
            note: Told in one line what a reader should know; by default the logger `retriever` warns.

        Raises:
            IndexMissing: There is no index.
            IndexCorrupt: It is damaged, and so is the generation before.
            Incompatible: It is of a newer format, or the embedder is another one.
        """
        return cls(Path(path), embedder=embedder, trust=trust, note=note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the pool; the retriever is not usable afterwards."""
        self._pool.close()

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._snapshot)

    def __repr__(self) -> str:
        return f"Retriever({str(self.path)!r}, {len(self)} examples)"

    @property
    def _snapshot(self) -> Snapshot:
        return self._selector.snapshot

    def _open_snapshot(self) -> Snapshot:
        """The newest view; tried again when a writer publishes between one look and the next."""
        for _ in range(_OPEN_ATTEMPTS):
            generation = generations.open_current(self.path, verify=not self._trust, note=self._note)
            base = Base.load(generation, verify=not self._trust)
            snapshot = Snapshot(base, self._pool, base.revision)
            newest = snapshot.advanced()
            if newest is None and generation.stands_in:
                return snapshot  # what came later has its vectors in the damaged generation alone
            if newest is not None:
                return newest
        raise IndexCorrupt(writing.pool_path(self.path), "lacks vectors of added examples", fix="build it again")

    # Reading

    def select(
        self,
        query: QueryLike,
        *,
        recipe: RecipeLike = None,
        vector: NDArray[np.float32] | None = None,
        **options: Unpack[Options],
    ) -> Selection:
        """The demonstrations for a query, best first.

        Args:
            query: Text, a mapping with `input` and perhaps further fields, or an example.
            recipe: A `Recipe`, a mapping, or the path of a TOML file; the defaults when None.
            vector: The vector of the query's key text, shape (dim,), when it is known already.
            **options: Single keys of the recipe, such as `k=4`, `mode="dense"`, `where='language == "en"'`.

        Raises:
            InvalidInput: A query, recipe or option that cannot be used.
        """
        vectors = None if vector is None else unit_rows(np.asarray(vector).reshape(1, -1))
        return self._selector.select([as_query(query)], Recipe.of(recipe).with_options(options), vectors)[0]

    def select_many(
        self, queries: Iterable[QueryLike], *, recipe: RecipeLike = None, **options: Unpack[Options]
    ) -> Iterator[Selection]:
        """The selections for many queries, in their order, each the same as `select` gives.

        Queries are taken from the iterable in blocks, and answered from one view of the index.

        Args:
            queries: As for `select`.
            recipe: As for `select`.
            **options: As for `select`.
        """
        settings = Recipe.of(recipe).with_options(options)
        selector = self._selector
        remaining = iter(queries)
        while block := [as_query(query) for query in islice(remaining, selector.block)]:
            yield from selector.select(block, settings)

    def prompt(
        self,
        query: QueryLike | Selection,
        *,
        recipe: RecipeLike = None,
        prompt_options: PromptOptions | None = None,
        **options: Unpack[Options],
    ) -> Prompt:
        """The prompt for a query: demonstrations and query, as messages and as text.

        Args:
            query: As for `select`; or a selection, which is put into a prompt as it is.
            recipe: As for `select`.
            prompt_options: Template, slots and the like; see `PromptOptions`.
            **options: As for `select`.

        Raises:
            TemplateError: The template and what is to fill it do not fit.
            InvalidInput: The prompt is over the budget even without demonstrations, or an option cannot be used.
        """
        if not isinstance(query, Selection):
            query = self.select(query, recipe=recipe, **options)
        elif recipe is not None or options:
            raise InvalidInput("a selection together with a recipe or options", fix="give them to select")
        return self._assemble(query, prompt_options or {})

    def prompt_many(
        self,
        queries: Iterable[QueryLike],
        *,
        recipe: RecipeLike = None,
        prompt_options: PromptOptions | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Prompt]:
        """The prompts for many queries, in their order; arguments as for `prompt`."""
        for selection in self.select_many(queries, recipe=recipe, **options):
            yield self._assemble(selection, prompt_options or {})

    def _assemble(self, selection: Selection, options: PromptOptions) -> Prompt:
        template = options.get("template", "io")
        template = template if isinstance(template, Template) else load_template(template)
        slots = dict(options.get("slots", {}))
        if "labels" in template.slots and "labels" not in slots:
            slots["labels"] = "\n".join(self.labels)
        budget = selection.recipe.budget
        ordered = selection.in_prompt_order
        return assemble(
            selection.query,
            [demonstration.example for demonstration in ordered],
            priority=[demonstration.rank for demonstration in ordered],
            template=template,
            slots=slots,
            budget=budget,
            counter=_counter(budget.counter),
            form=options.get("form", "messages"),
            collisions=options.get("collisions", "error"),
            zero_shot=options.get("zero_shot", False),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the pool, sorted."""
        return self._selector.labels

    @property
    def generation(self) -> str:
        """The generation that answers, such as `gen-000007`."""
        return self._snapshot.base.generation.path.name

    def info(self) -> dict[str, Json]:
        """What the index is: counts, settings, embedder, fusion weight, generation."""
        base = self._snapshot.base
        manifest = base.generation.manifest
        size = sum(len(buffer) for buffer in base.generation.buffers.values())
        return {
            "path": str(self.path),
            "examples": len(self),
            "generation": self.generation,
            "revision": self._snapshot.revision,
            "added_since": len(self._snapshot.tail.rows),
            "removed_since": len(self._snapshot.removed),
            "bytes": size,
            **{name: cast(Json, manifest[name]) for name in _SHOWN},
        }

    # Writing

    def add(
        self,
        examples: Source | Example | Mapping[str, Json],
        *,
        fields: Fields | None = None,
        strict: bool = False,
        on_bad: Callable[[BadRow], None] | None = None,
    ) -> tuple[str, ...]:
        """Adds examples; durable, and visible to the next `select`, when it returns.

        Args:
            examples: As the source of `build`, or a single example or mapping.
            fields: Where the attributes are; default `Fields()`.
            strict: Whether a bad row leaves everything as it was.
            on_bad: Called with each row that was set aside, an id that the pool has among them.

        Returns:
            The ids of what was added, in order.

        Raises:
            BadRows: A bad row under `strict`.
            IndexLocked: Another process is writing.
        """
        source = [examples] if isinstance(examples, Mapping | Example) else examples
        log = BadRowLog()
        with self._changing, writing.writing(self.path) as (pool, published):
            self._catch_up(published)
            new = list(
                read_examples(
                    source,
                    fields=fields or Fields(),
                    usable=lambda example: writing.check_addable(example, pool, self._snapshot.key),
                    on_bad=_both(log, on_bad),
                )
            )
            if strict:
                log.raise_if_any()
            if new:
                texts = [self._snapshot.key.text(example) for example in new]
                pool.change(new, self._encoder.examples(texts))
                self._advance(pool)
        if log.count and on_bad is None:
            self._note(f"{log.count} bad rows were set aside, first {log.rows[0]}")
        return tuple(example.id for example in new)

    def remove(self, ids: Iterable[str]) -> int:
        """Removes examples by id; durable, and gone from the next `select`, when it returns.

        Returns:
            How many were removed.

        Raises:
            InvalidInput: An id is not in the pool; nothing is removed then.
            IndexLocked: Another process is writing.
        """
        doomed = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
        with self._changing, writing.writing(self.path) as (pool, published):
            self._catch_up(published)
            pool.change([], np.empty((0, self._snapshot.dim), dtype=np.float32), doomed)
            self._advance(pool)
        return len(doomed)

    def refresh(self) -> bool:
        """Moves on to the newest state of the index, as other processes have left it.

        Returns:
            Whether there was anything new.
        """
        with self._changing:
            before = self._snapshot
            current = generations.read_current(self.path)[0]
            newest = before.advanced() if current == self.generation else None
            self._move_to(self._open_snapshot() if newest is None else newest)
            return self._snapshot is not before

    def _catch_up(self, published: int) -> None:
        """Moves on to the state that the lock now protects."""
        if published != self._snapshot.base.revision or self._pool.visible() != self._snapshot.revision:
            self.refresh()

    def _advance(self, pool: Pool) -> None:
        """Moves on after a change of this retriever's own, and folds many changes into a new generation."""
        newest = self._snapshot.advanced()
        assert newest is not None  # the lock is held: nobody else can have published
        self._move_to(newest)
        if len(newest.tail.rows) + len(newest.removed) > COMPACT_AFTER:
            writing.compact(self.path, pool, newest, lambda: self._encoder.embedder, _silent)
            self._move_to(self._open_snapshot())

    def _move_to(self, snapshot: Snapshot) -> None:
        if snapshot.base.generation.manifest["embedder"] != self._encoder.stored:
            self._encoder = QueryEncoder(snapshot.base.generation, self._given, self._note)
        if snapshot is not self._snapshot:
            self._selector = Selector(snapshot, self._encoder.queries)


def _no_pool(path: Path) -> Pool:
    if (path / "CURRENT").exists():
        raise IndexCorrupt(writing.pool_path(path), "is missing", fix="restore the index from a copy")
    raise IndexMissing(path)


def _both(first: Callable[[BadRow], None], second: Callable[[BadRow], None] | None) -> Callable[[BadRow], None]:
    def call(row: BadRow) -> None:
        first(row)
        if second is not None:
            second(row)

    return call


@lru_cache(maxsize=16)
def _counter(name: str) -> TokenCounter:
    return load_counter(name)
