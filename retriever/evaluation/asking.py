"""Asking a language model all prompts of an evaluation: within a budget, several at once, and none twice.

What will be asked is settled before the first call: queries in a seeded random order, all recipes of one before the
next one, as far as the budget reaches when every answer is as long as it may be. So a budget is never exceeded, the
same one asks the same, however many calls run at once, and what it reaches is a sample of the queries, not their
beginning. Each answer is kept as soon as it is there; what was interrupted goes on where it stopped, for what is kept
is not asked again and costs nothing. An interrupt waits for the calls that are on their way; those of a process that is
killed are lost, and are the only ones that are ever repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retriever.backends import Backend
from retriever.backends.base import form_read
from retriever.errors import BackendError, InvalidInput
from retriever.evaluation.answers import AnswerCache, prompt_key
from retriever.evaluation.comparison import Values
from retriever.evaluation.judge import AnswerMetric
from retriever.evaluation.outcomes import Outcomes
from retriever.example import Example
from retriever.listening import Progress
from retriever.prompting import Prompt
from retriever.prompts import PromptOptions
from retriever.ranking.seeding import permutation


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

    def fitting(self, prompt: PromptOptions) -> PromptOptions:
        """How prompts are put together for it: in the form that it reads, so that this is what is counted."""
        return {"form": form_read(self.backend), **prompt}


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
        all_prompt_tokens: The tokens of the prompts that are asked without a budget.
        all_answer_tokens: The most tokens of their answers.
    """

    prompts: int
    kept: int
    calls: int
    left_out: int
    prompt_tokens: int
    answer_tokens: int
    all_prompt_tokens: int
    all_answer_tokens: int


@dataclass(frozen=True)
class Answers:
    """What came back.

    Attributes:
        texts: By recipe, an answer for each query; None where there is none.
        refused: By recipe, for each query whether its call failed.
        failed: How many calls failed.
        first_failure: What the first of them said; empty for none.
        left_out: How many prompts the budget left out.
    """

    texts: Mapping[str, Sequence[str | None]]
    refused: Mapping[str, Sequence[bool]]
    failed: int
    first_failure: str
    left_out: int


def ask(
    asking: Asking,
    prompts: Mapping[str, Sequence[Prompt]],
    outcomes: Outcomes,
    *,
    on_cost: Callable[[Cost], None],
    progress: Progress,
) -> Answers:
    """Answers every prompt, as far as the budget reaches.

    Args:
        asking: The model, the budget and the file of answers.
        prompts: By recipe, one for each query.
        outcomes: What came of the run so far; the model is given up over all of it.
        on_cost: Told what it will cost, before the first call.
        progress: Told how many calls are done.

    Raises:
        BackendError: The model is given up; see `Outcomes`.
        InvalidInput: A prompt that cannot be sent, or a file of answers that is none.
        StorageError: An answer cannot be kept.
    """
    keys = {name: [prompt_key(asking.identity, prompt) for prompt in one] for name, one in prompts.items()}
    first: dict[str, Prompt] = {}
    for place in permutation(len(next(iter(prompts.values()))), 0, "", "asking").tolist():
        for name, one in prompts.items():
            first.setdefault(keys[name][place], one[place])
    with AnswerCache(asking.cache) as cache:
        known = cache.get(list(first))
        missing = [key for key in first if key not in known]
        lengths = [first[key].tokens for key in missing]
        planned = _within_budget(asking, lengths)
        left_out = set(missing[planned:])
        cost = Cost(
            prompts=len(first),
            kept=len(known),
            calls=planned,
            left_out=len(missing) - planned,
            prompt_tokens=sum(lengths[:planned]),
            answer_tokens=planned * asking.answer_tokens,
            all_prompt_tokens=sum(lengths),
            all_answer_tokens=len(missing) * asking.answer_tokens,
        )
        on_cost(cost)
        outcomes.begin({key: prompt for key, prompt in first.items() if key not in left_out}, known)
        asked = {key: first[key] for key in missing[:planned]}
        failures = _call_all(_Caller(asking, cache, outcomes), asked, known, progress)
    texts = {name: [known.get(key) for key in one] for name, one in keys.items()}
    refused = {name: [key in failures for key in one] for name, one in keys.items()}
    return Answers(
        texts=texts,
        refused=refused,
        failed=len(failures),
        first_failure=next(iter(failures.values()), ""),
        left_out=cost.left_out,
    )


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
    caller: _Caller, prompts: Mapping[str, Prompt], known: dict[str, str], progress: Progress
) -> dict[str, str]:
    """Adds the answers to those that are known; what the calls that failed said, in the order of the prompts."""
    failures: dict[str, str] = {}
    pool = ThreadPoolExecutor(caller.asking.concurrency, thread_name_prefix="asking")
    running: dict[str, Future[str]] = {}
    try:
        for key, prompt in prompts.items():
            running[key] = pool.submit(caller, key, prompt)
        for done, (key, future) in enumerate(running.items(), start=1):
            try:
                known[key] = future.result()
            except BackendError as error:
                failures[key] = str(error)
                if caller.outcomes.given_up is not None:
                    raise caller.outcomes.given_up from error
            progress("asking", done, len(prompts))
    finally:
        _settle(pool, running.values())
    return failures


def _settle(pool: ThreadPoolExecutor, begun: Collection[Future[str]]) -> None:
    """Waits for the calls that are on their way, so that their answers are kept; what has not begun never does.

    Interrupts that come meanwhile are put off until then: an answer that is paid for is worth the seconds it takes, and
    no call lasts longer than the backend's timeout.
    """
    put_off = None
    while True:
        try:
            # Not by joining the threads: Python 3.11 takes a thread for ended whose join was interrupted.
            pool.shutdown(wait=False, cancel_futures=True)
            wait([one for one in begun if not one.cancelled()])
            break
        except KeyboardInterrupt as interrupt:
            put_off = interrupt
    if put_off is not None:
        raise put_off


@dataclass(frozen=True)
class _Caller:
    """Asks and keeps the answer; asks no more when the model was given up."""

    asking: Asking
    cache: AnswerCache
    outcomes: Outcomes

    def __call__(self, key: str, prompt: Prompt) -> str:
        """The answer, on the disk when this returns.

        Raises:
            BackendError: The call failed, or was not made, for too many have.
        """
        if self.outcomes.given_up is not None:
            raise self.outcomes.given_up
        try:
            answer = self.asking.backend(prompt)
            _check(answer, self.asking.name)
        except BackendError as error:
            self.outcomes.failed(key, error)
            raise
        self.cache.put(key, answer)
        self.outcomes.answered(key)
        return answer


def _check(answer: object, name: str) -> None:
    if not isinstance(answer, str):
        raise BackendError(f"the backend {name} returned {type(answer).__name__}", expected="text")
    if any("\ud800" <= character <= "\udfff" for character in answer):
        raise BackendError(
            f"the backend {name} returned half a character", expected="text that can be written as UTF-8"
        )


def values_of(answers: Answers, judges: Sequence[AnswerMetric], queries: Sequence[Example]) -> Values:
    """What the answers are worth, NaN where there is none or nothing to compare it with.

    Args:
        answers: Of some recipes to the queries.
        judges: The metrics.
        queries: With their true outputs and labels.

    Returns:
        Shape (judges, recipes, queries).

    Raises:
        InvalidInput: A metric has not one query that was answered under every recipe.
    """
    values = np.full((len(judges), len(answers.texts), len(queries)), np.nan)
    for number, one in enumerate(judges):
        for row, texts in enumerate(answers.texts.values()):
            for place, (query, text) in enumerate(zip(queries, texts, strict=True)):
                if text is not None and one.judges(query):
                    values[number, row, place] = one.value(text, query)
    if np.isnan(values).any(axis=1).all(axis=1).any():
        raise InvalidInput(
            "no query that can be judged was answered under every recipe: " + "; ".join(missing(answers)),
            fix="raise the budget, or see why calls failed; what was answered is kept",
        )
    return values


def missing(answers: Answers) -> list[str]:
    """What of the answers there is not, a sentence each; nothing when all are there."""
    complete = [None not in texts for texts in zip(*answers.texts.values(), strict=True)]
    notes = []
    if answers.left_out:
        notes.append(f"the budget left out {answers.left_out} prompts")
    if answers.failed:
        notes.append(f"{answers.failed} calls failed, the first: {answers.first_failure}")
    if not all(complete):
        notes.append(
            f"answers are judged on the {sum(complete)} of {len(complete)} queries with one under every recipe"
        )
    return notes
