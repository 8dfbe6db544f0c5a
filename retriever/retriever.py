"""Retriever: an index on disk, as its users see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from retriever.build import BuildSettings, Told, build_index, check_size
from retriever.embedders import EmbedderSource
from retriever.embedders.base import unit_rows
from retriever.errors import InvalidInput
from retriever.evaluation.calibration import Calibration
from retriever.example import Example, Json, QueryLike, as_query
from retriever.formats import BadRow, BadRowLog, Fields, Limits, Source, read_examples
from retriever.keys import Key
from retriever.listening import Note, Progress, log_note, silent
from retriever.live import LiveIndex
from retriever.plan import BuildPlan
from retriever.pool import payload
from retriever.prompting import Prompt
from retriever.prompts import PromptOptions, prompt_for
from retriever.ranking.recipe import Options, Recipe
from retriever.recipes import RecipeLike, check_default, check_tokens, effective, select_each
from retriever.selection import Selection
from retriever.selector import MAX_BLOCK
from retriever.settings import IndexSettings
from retriever.snapshot import Snapshot

if TYPE_CHECKING:
    from retriever.adaptation.adapt import Adapted
    from retriever.adaptation.training import FinetuneSettings
    from retriever.evaluation.key_search import Trial


_SHOWN = ("format", "created_by", "settings", "ann", "embedder", "fusion", "adaptation", "recipe")


@dataclass(frozen=True)
class Update:
    """What `Retriever.update` did.

    Attributes:
        added: Ids that the pool did not have.
        replaced: Ids whose example was another one before.
        unchanged: Ids whose example was the same already; nothing was written for them.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]


class Retriever:
    """Finds the examples of a pool that help most with a query, and puts them into a prompt.

    Made by `build` or `open`; a context manager. Selections come from one consistent view of the index until `refresh`,
    or a change of its own, moves on to a newer one. Safe to share between threads: selections run side by side, changes
    one after the other.

        with Retriever.open("tickets.index") as retriever:
            for demonstration in retriever.select("my card still has not arrived", k=4):
                print(demonstration.score, demonstration.example.output)
    """

    def __init__(
        self, path: Path, *, embedder: EmbedderSource | None, trust: bool, limits: Limits | None, note: Note
    ) -> None:
        self.path = path
        self._limits = limits or Limits()
        self._note = note
        self._live = LiveIndex(path, embedder, trust=trust, note=note)

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
        max_memory: int | None = None,
        recipe: RecipeLike = None,
        on_bad: Callable[[BadRow], None] | None = None,
        on_plan: Callable[[BuildPlan], None] = silent,
        note: Note = log_note,
        progress: Progress = silent,
    ) -> Self:
        """Builds an index and opens it.

        A build that is interrupted goes on where it stopped when it is run again: what was embedded is not embedded
        again, and the files are those of a build that was not interrupted.

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
            limits: How large rows, pool, selections and prompts may be; default `Limits()`.
            settings: How examples are indexed; default `IndexSettings()`.
            embedder: A name, `EmbedderSettings`, a function from texts to vectors, or an object with `encode`.
            weight: Share of the dense channel; None calibrates it on the pool.
            strict: Whether a bad row fails the build; otherwise bad rows are set aside and reported.
            overwrite: Whether an index that is there gets these examples instead of its own.
            max_memory: Bytes; a build that is predicted to need more is refused before it embeds anything, and a
                recall that is asked for is met within it. None for what `settings` say, if anything.
            recipe: What `select` goes by where it is told nothing else: a `Recipe`, a mapping, or the path of a TOML or
                `.json` file; None for the defaults. The index stores it.
            on_bad: Called with each bad row.
            on_plan: Called before the work starts with what it is predicted to need.
            note: Told in one line what a reader should know; by default the logger `retriever` warns.
            progress: Called with what is being done, how much of it is done, and how much there is.

        Raises:
            InvalidInput: The source cannot be read, the path holds something else, or an option cannot be used.
            BadRows: A bad row under `strict`, or no usable row.
            EmbedderError: The embedder fails.
            IndexLocked: Another process is writing the index.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        fields = Fields(input=input, output=output, rationale=rationale, label=label, id=id, task=task, meta=meta)
        index = settings or IndexSettings()
        room = index.max_memory if max_memory is None else max_memory
        if index.recall is not None:
            index = replace(index, max_memory=room)
        given = None if weight is None else Calibration(weight, "given")
        bounds = limits or Limits()
        log = BadRowLog()

        def read(sink: Callable[[BadRow], None]) -> Iterator[Example]:
            return read_examples(
                source,
                fields=fields,
                format=format,
                table=table,
                encoding=encoding,
                limits=bounds,
                usable=Key(index.key).text,
                on_bad=_both(sink, on_bad),
            )

        default = Recipe.of(recipe)
        if recipe is not None:
            check_default(default, bounds, index)
        asked = BuildSettings(
            index=index,
            embedder=embedder,
            calibration=given,
            strict=strict,
            overwrite=overwrite,
            max_rows=bounds.rows,
            max_memory=room,
            recipe=default,
        )
        tell = Told(note, progress, on_plan)
        used = build_index(Path(path), read, asked, log=log, tell=tell)
        if log.count and on_bad is None:
            note(f"{log.count} bad rows were set aside, first {log.rows[0]}")
        return cls(Path(path), embedder=used, trust=True, limits=limits, note=note)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        embedder: EmbedderSource | None = None,
        trust: bool = False,
        limits: Limits | None = None,
        note: Note = log_note,
    ) -> Self:
        """Opens an index.

        Args:
            path: The index directory.
            embedder: The embedder to use instead of the one the index names; it must give the same vectors.
            trust: Whether to skip the comparison of hashes; sizes are always checked.
            limits: How large rows, pool, selections and prompts may be; default `Limits()`.
            note: Told in one line what a reader should know; by default the logger `retriever` warns.

        Raises:
            IndexMissing: There is no index.
            IndexCorrupt: It is damaged, and so is the generation before.
            Incompatible: It is of a newer format, or the embedder is another one.
        """
        return cls(Path(path), embedder=embedder, trust=trust, limits=limits, note=note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the index; the retriever is not usable afterwards."""
        self._live.close()

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.snapshot)

    def __repr__(self) -> str:
        return f"Retriever({str(self.path)!r}, {len(self)} examples)"

    @property
    def snapshot(self) -> Snapshot:
        """The view of the index that answers: examples, vectors, postings. It stays as it is when the index changes."""
        return self._live.snapshot

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
            recipe: A `Recipe`, a mapping, or the path of a TOML or `.json` file; the index's own when None.
            vector: The vector of the query's key text, shape (dim,), when it is known already.
            **options: Single keys of the recipe, such as `k=4`, `mode="dense"`, `where='language == "en"'`.

        Raises:
            InvalidInput: A query, recipe or option that cannot be used.
        """
        vectors = None if vector is None else unit_rows(np.asarray(vector).reshape(1, -1))
        selector = self._live.selector
        return next(selector.select([as_query(query)], effective(selector, recipe, options, self._limits), vectors))

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
        selector = self._live.selector
        settings = effective(selector, recipe, options, self._limits)
        remaining = iter(queries)
        while block := [as_query(query) for query in islice(remaining, MAX_BLOCK)]:
            yield from selector.select(block, settings)

    def select_each(
        self, queries: Iterable[QueryLike], recipes: Sequence[RecipeLike]
    ) -> Iterator[tuple[Selection, ...]]:
        """For each query its selection by each of several recipes, the same as `select` gives, at less cost.

        A query is embedded and scored once for all recipes that differ only in what comes after.

        Args:
            queries: As for `select`; taken from the iterable in blocks.
            recipes: Each as for `select`.
        """
        return select_each(self._live.selector, queries, recipes, self._limits)

    def query_vectors(self, queries: Iterable[QueryLike]) -> NDArray[np.float32]:
        """The vectors that stand for queries, float32, shape (queries, dim); comparable with those of the index.

        Args:
            queries: As for `select`.
        """
        return self._live.selector.query_vectors(list(map(as_query, queries)))

    def effective_recipe(self, recipe: RecipeLike = None, **options: Unpack[Options]) -> Recipe:
        """The recipe that `select` goes by when it is given the same: the caller's or the index's own.

        Args:
            recipe: As for `select`.
            **options: As for `select`.

        Raises:
            InvalidInput: A recipe or option that cannot be used.
            Incompatible: The index's own recipe names a model that the caller has not named.
        """
        return effective(self._live.selector, recipe, options, self._limits)

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
        most = self._limits.prompt_characters
        return prompt_for(selection, options, labels=lambda: self.labels, max_characters=most)

    @property
    def limits(self) -> Limits:
        """How large rows, pool, selections and prompts may be."""
        return self._limits

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the pool, sorted."""
        return self._live.selector.labels

    @property
    def recipe(self) -> Recipe:
        """The index's default recipe.

        Raises:
            InvalidInput: It names a strategy of a package that is not installed.
        """
        return self._live.selector.recipe

    @property
    def generation(self) -> str:
        """The generation that answers, such as `gen-000007`."""
        return self.snapshot.base.generation.name

    def info(self) -> dict[str, Json]:
        """What the index is: counts, settings, embedder, fusion weight, generation, and the digest of its content.

        `damaged` tells whether an older generation answers in place of one that is damaged.
        """
        base = self.snapshot.base
        manifest = base.generation.manifest
        size = sum(len(buffer) for buffer in base.generation.buffers.values())
        return {
            "path": str(self.path),
            "examples": len(self),
            "generation": self.generation,
            "damaged": base.generation.stands_in,
            "revision": self.snapshot.revision.number,
            "chain": self.snapshot.revision.chain,
            "added_since": len(self.snapshot.tail),
            "removed_since": len(self.snapshot.removed),
            "bytes": size,
            **{name: cast(Json, manifest[name]) for name in _SHOWN if name in manifest},
        }

    def try_keys(
        self, keys: Sequence[str], *, progress: Progress = silent
    ) -> AbstractContextManager[Mapping[str, Trial]]:
        """Indexes the pool by other keys as well, all else as it is, to compare what is selected; see `tune`.

        Each lies in a temporary directory, which is gone at the end. The index itself does not change unless one is
        kept: `Trial.keep`.

        Args:
            keys: Which text of an example to index; see `retriever.keys.Key`.
            progress: Told how far the work is.

        Raises:
            InvalidInput: A key is the index's own, or is named twice; it gives every example the text that it has
                already, lacks a field of one, or needs the answer that a query does not have; or the index is adapted.
            EmbedderError: The embedder cannot be loaded or fails.
            Incompatible: The embedder is not the one it was, or is not at hand.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        from retriever.evaluation.key_search import trials

        return trials(self._live, keys, self._limits, self._note, progress)

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
            StorageError: The operating system refuses.
        """
        with self._live.session() as session:
            room = self._limits.rows - len(self)
            new = self._read(examples, fields, strict, on_bad, usable=self._check_addable, room=room)
            self._live.change(session, new, [])
        return tuple(example.id for example in new)

    def update(
        self,
        examples: Source | Example | Mapping[str, Json],
        *,
        fields: Fields | None = None,
        strict: bool = False,
        on_bad: Callable[[BadRow], None] | None = None,
    ) -> Update:
        """Adds examples, in place of those that have their ids; durable, and visible to the next `select`.

        An example that takes the place of another stands where it would stand had it been added last. One that is the
        same already is left as it is. What is embedded is new text alone.

        Args:
            examples: As for `add`.
            fields: As for `add`.
            strict: As for `add`.
            on_bad: Called with each row that was set aside.

        Raises:
            BadRows: A bad row under `strict`.
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses.
        """
        with self._live.session() as session:
            usable, room = self.snapshot.key.text, self._limits.rows  # any of them may take the place of another
            given = self._read(examples, fields, strict, on_bad, usable=usable, room=room)
            places = self.snapshot.places_of([example.id for example in given])
            check_size(len(self) + len(given) - len(places), self._limits.rows)
            # As they are written: to Python 1, 1.0 and true are equal, and so are keys in another order.
            stored = {example.id: payload(example) for example in self.snapshot.examples(list(places.values()))}
            new = [example for example in given if stored.get(example.id) != payload(example)]
            self._live.change(session, new, [places[example.id] for example in new if example.id in places])
        return Update(
            tuple(example.id for example in new if example.id not in places),
            tuple(example.id for example in new if example.id in places),
            tuple(example.id for example in given if stored.get(example.id) == payload(example)),
        )

    def remove(self, ids: Iterable[str]) -> int:
        """Removes examples by id; durable, and gone from the next `select`, when it returns.

        Returns:
            How many were removed.

        Raises:
            InvalidInput: An id is not in the pool; nothing is removed then.
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses.
        """
        doomed = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
        with self._live.session() as session:
            places = self.snapshot.places_of(doomed)
            for identity in doomed:
                if identity not in places:
                    raise InvalidInput(f"no example with the id {identity!r}", expected="ids of examples in the pool")
            self._live.change(session, [], list(places.values()))
        return len(doomed)

    def compact(self) -> str:
        """Folds all changes since the last generation into a new one; by itself it happens after 1,000.

        No answer changes. Nothing is embedded but the tokens of added texts, where the index stores tokens.

        Returns:
            The generation that answers now; the same as before when there was nothing to fold.

        Raises:
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        with self._live.session() as session:
            if self.snapshot.changed or self.snapshot.base.generation.stands_in:
                self._live.compact(session)
        return self.generation

    def set_recipe(self, recipe: RecipeLike) -> str:
        """Makes a recipe the index's default, for every process that opens it from now on; durable when it returns.

        A generation is published, with all changes folded in, as by `compact`.

        Args:
            recipe: As for `select`; None for the defaults.

        Returns:
            The generation that answers now.

        Raises:
            InvalidInput: A recipe that cannot be used.
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        chosen = Recipe.of(recipe)
        if recipe is not None:
            check_default(chosen, self._limits, self.snapshot.base.settings)
            check_tokens(chosen, lambda: self._live.encoder.embedder)
        with self._live.session() as session:
            if chosen.select.fixed:
                self._live.selector.check_ids(chosen.select.fixed)
            self._live.compact(session, chosen)
        return self.generation

    def adapt(
        self,
        *,
        kind: str = "linear",
        source: Source | None = None,
        strict: bool = False,
        on_bad: Callable[[BadRow], None] | None = None,
        progress: Progress = silent,
    ) -> Adapted:
        """Learns from the pool's own labels or outputs, or from a log, what is alike, and keeps that where it helps.

        A linear map of the embedder's vectors is learned and judged on examples, or logged queries, that it was not
        learned from, with the fusion weight calibrated anew. Where the calibrated hybrid gains more than one standard
        error, a generation is published with it; else nothing changes. About one in five pools whose labels say nothing
        gets a map by chance; see `retriever.adaptation.validation.judge`. The embedder's own vectors are kept: see
        `undo_adaptation`. Tune before: on an adapted index `tune` asks for queries of its own.

        Args:
            kind: `linear`, `low-rank` or `per-dimension`; see `LearnerSettings`.
            source: What says that examples are alike. Of the pool `labels`, `outputs`, `templates` of outputs or
                `embeddings` of outputs; None for labels when they repeat and differ, else outputs. Anything else is a
                log of outcomes, see `retriever.adaptation.feedback`: what it says of examples that are not in the pool
                is left out, and told.
            strict: Whether a bad line of the log is an error; otherwise bad lines are set aside and told.
            on_bad: Called with each line that was set aside.
            progress: Told how far the work is.

        Raises:
            InvalidInput: The kind is unknown, the pool has not what is to be learned from, or the log cannot be read or
                says nothing of the pool.
            BadRows: A bad line under `strict`.
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        from retriever.adaptation.apply import adapt_index, teacher_of
        from retriever.adaptation.learner import LearnerSettings

        settings = LearnerSettings(kind)
        self.refresh()
        teacher = teacher_of(source, self.snapshot, self._limits, self._note, strict=strict, on_bad=on_bad)
        return adapt_index(self._live, settings, teacher, progress)

    def fine_tune(
        self,
        settings: FinetuneSettings | None = None,
        *,
        source: Source | None = None,
        strict: bool = False,
        on_bad: Callable[[BadRow], None] | None = None,
        progress: Progress = silent,
    ) -> Adapted:
        """Fine-tunes the model that embeds, by its library's own trainer, and keeps it where it helps.

        A part of the pool, or of the log, is held out from a first model and judges it, as `adapt` judges a map. Where
        it helps, and a map does not help more, a second one learns from everything, and a generation is published that
        holds it and the pool as it embeds it; from then on queries and additions are embedded by it. The former one
        comes back by `undo_adaptation`, which embeds the pool again.

        Args:
            settings: How; default `FinetuneSettings()`.
            source: As for `adapt`.
            strict: As for `adapt`.
            on_bad: As for `adapt`.
            progress: Told how far the work is.

        Raises:
            InvalidInput: The embedder is no sentence-transformers model that is loaded by name, the index is adapted
                already, or as for `adapt`.
            MissingDependency: A package of the extra `finetune` is not installed.
            BadRows: A bad line under `strict`.
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        from retriever.adaptation.apply import fine_tune_index, teacher_of
        from retriever.adaptation.training import FinetuneSettings

        self.refresh()
        teacher = teacher_of(source, self.snapshot, self._limits, self._note, strict=strict, on_bad=on_bad)
        return fine_tune_index(self._live, settings or FinetuneSettings(), teacher, progress, self._note)

    def undo_adaptation(self, *, progress: Progress = silent) -> str:
        """Searches the embedder's own vectors again, or those of the embedder that was there before `fine_tune`.

        The fusion weight is calibrated for them. The former embedder is loaded by its name, and embeds the pool again.

        Args:
            progress: Told how far the work is.

        Returns:
            The generation that answers now.

        Raises:
            InvalidInput: The index is not adapted.
            Incompatible: The former embedder is not the one it was, or is not at hand.
            EmbedderError: It cannot be loaded.
            IndexLocked: Another process is writing.
            StorageError: The operating system refuses; `OutOfSpace` when the disk has no room.
        """
        from retriever.adaptation.apply import undo

        undo(self._live, progress, self._note)
        return self.generation

    def refresh(self) -> bool:
        """Moves on to the newest state of the index, as other processes have left it.

        Returns:
            Whether there was anything new.
        """
        return self._live.refresh()

    def _read(
        self,
        examples: Source | Example | Mapping[str, Json],
        fields: Fields | None,
        strict: bool,
        on_bad: Callable[[BadRow], None] | None,
        *,
        usable: Callable[[Example], object],
        room: int,
    ) -> list[Example]:
        source = [examples] if isinstance(examples, Mapping | Example) else examples
        log = BadRowLog()
        sink = _both(log, on_bad)
        found = read_examples(source, fields=fields or Fields(), limits=self._limits, usable=usable, on_bad=sink)
        new = list(islice(found, max(room, 0) + 1))
        check_size(self._limits.rows - room + len(new), self._limits.rows)
        if strict:
            log.raise_if_any()
        if log.count and on_bad is None:
            self._note(f"{log.count} bad rows were set aside, first {log.rows[0]}")
        return new

    def _check_addable(self, example: Example) -> None:
        self.snapshot.key.text(example)
        if self.snapshot.places_of([example.id]):
            raise InvalidInput(f"id {example.id!r} is in the pool already")


def _both(first: Callable[[BadRow], None], second: Callable[[BadRow], None] | None) -> Callable[[BadRow], None]:
    def call(row: BadRow) -> None:
        first(row)
        if second is not None:
            second(row)

    return call
