"""Asking a language model all prompts of an evaluation: within a budget, several at once, and none twice.

What will be asked is settled before the first call: prompts in their order, all recipes of a query before the next query,
as far as the budget reaches when every answer is as long as it may be. So a budget is never exceeded, and the same one
asks the same, however many calls run at once. Each answer is kept as soon as it is there; what was interrupted goes on
where it stopped, for what is kept is not asked again and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from retriever.backends import Backend
from retriever.errors import BackendError, InvalidInput
from retriever.evaluation.answers import AnswerCache, prompt_key
from retriever.prompting import Prompt

MOST_FAILURES = 10


@dataclass(frozen=True)
class Asking:
    """A language model, and how much may be asked of it.

    Attributes:
        backend: From a prompt to an answer.
        identity: What its answers depend on beside the prompt; see `backend_identity`. Answers are kept by it.
        name: What it is called in the result.
        cache: The file of answers.
        concurrency: How many calls run at once, at least 1.
        max_calls: The most calls of this run; None for no limit. What a backend repeats by itself counts once.
        max_tokens: The most tokens of this run, prompts and answers together, as the recipe's counter counts; None for
            no limit.
        answer_tokens: The most tokens of an answer, which the backend has been told.

    Raises:
        InvalidInput: A number out of range.
    """

    backend: Backend
    identity: str
    name: str
    cache: Path
    concurrency: int = 4
    max_calls: int | None = None
    max_tokens: int | None = None
    answer_tokens: int = 256

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("max_calls", 0), ("max_tokens", 0), ("answer_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInput(f"{name} = {value}", expected=f"{least} or more")


@dataclass(frozen=True)
class Cost:
    """What a run will ask, told before it starts.

    Attributes:
        prompts: How many different prompts there are.
        kept: How many of them have an answer already.
        calls: How many are asked.
        left_out: How many the budget leaves out.
        prompt_tokens: The tokens of the prompts that are asked.
        answer_tokens: The most tokens of their answers.
    """

    prompts: int
    kept: int
    calls: int
    left_out: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Answers:
    """What came back.

    Attributes:
        texts: By recipe, an answer for each query; None where there is none.
        failed: How many calls failed.
        first_failure: What the first of them said; empty for none.
        left_out: How many prompts the budget left out.
    """

    texts: Mapping[str, Sequence[str | None]]
    failed: int
    first_failure: str
    left_out: int


def ask(
    asking: Asking,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    on_cost: Callable[[Cost], None],
    progress: Callable[[str, int, int], None],
) -> Answers:
    """Answers every prompt, as far as the budget reaches.

    Args:
        asking: The model, the budget and the file of answers.
        prompts: By recipe, one for each query.
        on_cost: Told what it will cost, before the first call.
        progress: Told how many calls are done.

    Raises:
        BackendError: Every call failed, or `MOST_FAILURES` in a row did.
        InvalidInput: A prompt that cannot be sent, or a file of answers that is none.
        StorageError: An answer cannot be kept.
    """
    keys = {name: [prompt_key(asking.identity, prompt) for prompt in one] for name, one in prompts.items()}
    first: dict[str, Prompt] = {}
    for place in range(len(next(iter(prompts.values())))):
        for name, one in prompts.items():
            first.setdefault(keys[name][place], one[place])
    with AnswerCache(asking.cache) as cache:
        known = cache.get(list(first))
        missing = [key for key in first if key not in known]
        planned = _within_budget(asking, [first[key].tokens for key in missing])
        asked = missing[:planned]
        cost = Cost(
            len(first),
            len(known),
            planned,
            len(missing) - planned,
            sum(first[key].tokens for key in asked),
            planned * asking.answer_tokens,
        )
        on_cost(cost)
        failures = _call_all(asking, {key: first[key] for key in asked}, cache, known, progress)
    texts = {name: [known.get(key) for key in one] for name, one in keys.items()}
    return Answers(texts, len(failures), failures[0] if failures else "", cost.left_out)


def _within_budget(asking: Asking, tokens: Sequence[int]) -> int:
    """How many of the prompts, from the first on, may be asked when every answer is as long as it may be."""
    most = len(tokens) if asking.max_calls is None else min(asking.max_calls, len(tokens))
    if asking.max_tokens is None:
        return most
    spent = 0
    for count, one in enumerate(tokens[:most]):
        spent += one + asking.answer_tokens
        if spent > asking.max_tokens:
            return count
    return most


def _call_all(
    asking: Asking,
    prompts: Mapping[str, Prompt],
    cache: AnswerCache,
    known: dict[str, str],
    progress: Callable[[str, int, int], None],
) -> list[str]:
    """Adds the answers to those that are known; what the calls that failed said."""

    def call(key: str) -> str:
        answer = asking.backend(prompts[key])
        _check(answer, asking.name)
        cache.put(key, answer)
        return answer

    failures: list[str] = []
    in_a_row = 0
    pool = ThreadPoolExecutor(asking.concurrency, thread_name_prefix="asking")
    try:
        running: dict[Future[str], str] = {pool.submit(call, key): key for key in prompts}
        for done, future in enumerate(as_completed(running), start=1):
            try:
                known[running[future]] = future.result()
                in_a_row = 0
            except BackendError as error:
                failures.append(str(error))
                in_a_row += 1
                if in_a_row == MOST_FAILURES or (len(failures) == len(prompts) and not known):
                    raise
            progress("asking", done, len(prompts))
    finally:
        # Of an interrupted run, what is on its way is waited for and kept; what has not begun never is.
        pool.shutdown(cancel_futures=True)
    return failures


def _check(answer: object, name: str) -> None:
    if not isinstance(answer, str):
        raise BackendError(f"the backend {name} returned {type(answer).__name__}", expected="text")
    if any("\ud800" <= character <= "\udfff" for character in answer):
        raise BackendError(
            f"the backend {name} returned half a character", expected="text that can be written as UTF-8"
        )
