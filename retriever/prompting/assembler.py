"""From a query and its demonstrations to a prompt that fits a token budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal, get_args

from retriever.errors import DelimiterCollision, InvalidInput
from retriever.example import Example
from retriever.prompting.fitting import Plan, by_density, fit
from retriever.prompting.shortening import limited, told
from retriever.prompting.template import Template
from retriever.prompting.text import Collisions, TextWriter
from retriever.prompting.tokens import CachedCounter, TokenCounter
from retriever.ranking.recipe import Budget

Form = Literal["messages", "text"]

MESSAGE_TOKENS = 4
"""What a message costs beside its content: OpenAI's chat format frames each with 3 tokens and names the role in 1."""

REPLY_TOKENS = 3
"""What starts the model's reply, once for each prompt in messages."""

_NO_SLOTS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Skipped:
    """A demonstration that is not in the prompt.

    Attributes:
        example_id: Which.
        reason: Why.
        tokens: What it would have added to the prompt.
    """

    example_id: str
    reason: str
    tokens: int


@dataclass(frozen=True)
class Shortened:
    """A demonstration that is in the prompt shorter than it is in the pool.

    Attributes:
        example_id: Which.
        what: The fields that were cut or left out.
    """

    example_id: str
    what: str


@dataclass(frozen=True)
class Prompt:
    """A prompt, as messages and as text, and what it was made from.

    Attributes:
        messages: The system message if there is one, a user and an assistant message for each demonstration, and the
            query as a user message. Values of examples stand in them verbatim.
        tokens: The length of the whole prompt in its `form`: for messages the tokens of every content, 4 for each
            message and 3 for the reply; for text those of the whole text.
        demonstrations: Those in the prompt, in its order, as they stand there.
        skipped: Those left out, in the order in which they were given.
        query: The query.
        template: The template; exports name it by `template.name`.
        slots: The caller's values.
        counter: The name of the counter behind `tokens`.
        form: Which form was fitted to the budget.
        collisions: The policy of the text form.
        zero_shot: Whether the template's zero-shot line was asked for.
        shortened: Those in the prompt that had to be shortened, in its order.
        costs: The tokens that each of `demonstrations` adds, the overhead of its messages or its separator included; of
            text each counted by itself, so that together they may add a little more or less.
    """

    messages: list[dict[str, str]]
    tokens: int
    demonstrations: tuple[Example, ...]
    skipped: tuple[Skipped, ...]
    query: Example
    template: Template
    slots: Mapping[str, str] = field(repr=False)
    counter: str
    form: Form
    collisions: Collisions
    zero_shot: bool
    shortened: tuple[Shortened, ...] = ()
    costs: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The same prompt for a model that completes text.

        Raises:
            DelimiterCollision: A value contains a delimiter of the text form, and the policy is to raise, or leaves no
                other way. Only this property raises it when the prompt was made as messages.
        """
        return self._text[0]

    @property
    def text_dropped(self) -> tuple[Example, ...]:
        """Demonstrations in the messages that `text` leaves out, under the policy `drop`."""
        return self._text[1]

    @cached_property
    def _text(self) -> tuple[str, tuple[Example, ...]]:
        writer = TextWriter(self.template, self.slots, self.collisions)
        blocks: list[str] = []
        dropped: list[Example] = []
        for example in self.demonstrations:
            try:
                blocks.append(writer.demonstration(example))
            except DelimiterCollision:
                if self.collisions != "drop":
                    raise
                dropped.append(example)
        query = writer.query(self.query, trigger=self.zero_shot and not blocks)
        return writer.join(writer.system(), blocks, query), tuple(dropped)


def assemble(
    query: Example,
    demonstrations: Sequence[Example],
    *,
    template: Template,
    counter: TokenCounter,
    priority: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    shared: Sequence[bool] | None = None,
    slots: Mapping[str, str] = _NO_SLOTS,
    budget: Budget = Budget(),
    form: Form = "messages",
    collisions: Collisions = "error",
    zero_shot: bool = False,
) -> Prompt:
    """Builds the prompt of a query.

    Under a budget, demonstrations are taken in the order of their priority, or by score for each token; one that does
    not fit is shortened where the budget says how, else skipped, and the next is tried. The result never exceeds the
    budget, and no skipped demonstration would still fit. System message, query, the overhead of each message and the
    reserve are counted. The query is never shortened.

    Demonstrations that all queries share are the exception: they are never skipped or shortened for a budget, so that
    they are the same bytes in every prompt. Limits of fields and collisions of the text form do change them, for all
    queries alike. A query without room beside them is refused, as one without room beside the system message is: how
    much room a query needs is what a rule that does not look at the query cannot know.

    Args:
        query: The query; its output is not read.
        demonstrations: In the order in which they are to stand in the prompt.
        template: How they are rendered.
        counter: What counts the tokens.
        priority: The rank of each demonstration for the budget, 0 being the most important; equal ranks are taken in
            prompt order. None for prompt order.
        scores: What each demonstration is worth, for a budget filled by density.
        shared: Whether all queries share each demonstration; None for no one. That they stand in front is up to the
            caller.
        slots: Values for the template's placeholders that no example has, by name. They are data, as examples are.
        budget: The limit, and what is done about what exceeds it.
        form: Which form the budget and `Prompt.tokens` are about.
        collisions: What happens to data that contains a delimiter of the text form. For `form="text"` this is decided
            here, before the budget; for messages only when `Prompt.text` is read.
        zero_shot: Whether the template's `zero_shot` line ends the query's turn when there is no demonstration.

    Raises:
        TemplateError: A placeholder without a value, or a slot without a placeholder.
        DelimiterCollision: Only for `form="text"`; see `Collisions`.
        InvalidInput: The prompt does not fit even without demonstrations that are not shared; an argument that cannot
            be used.
    """
    _check(demonstrations, priority, shared, template, form, collisions, zero_shot)
    slots = dict(slots)
    template.check_slots(slots)
    counter = counter if isinstance(counter, CachedCounter) else CachedCounter(counter.name, counter.count)
    given = [limited(example, budget.max_field_tokens, counter) for example in demonstrations]
    plan_of = _messages_plan if form == "messages" else _text_plan
    plan = plan_of(query, given, TextWriter(template, slots, collisions), counter, zero_shot)
    plan = replace(plan, shared=frozenset(i for i, always in enumerate(shared or ()) if always))
    limit = budget.limit
    if limit is None:
        chosen = plan.all_of(plan.usable)
    else:
        chosen = fit(plan, _order(plan, priority, scores, budget), limit, budget.prune)
    tokens = plan.tokens(chosen)
    if limit is not None and tokens > limit:
        raise _too_long(tokens, len(chosen), budget)
    skipped = _skipped(plan, chosen, limit)
    kept = tuple(chosen[i] for i in sorted(chosen))
    shorter = tuple(
        Shortened(chosen[i].id, told(demonstrations[i], chosen[i]))
        for i in sorted(chosen)
        if chosen[i] != demonstrations[i]
    )
    messages = _messages(query, kept, template, slots, trigger=zero_shot and not kept)
    return Prompt(
        messages,
        tokens,
        kept,
        skipped,
        query,
        template,
        slots,
        counter.name,
        form,
        collisions,
        zero_shot,
        shorter,
        tuple(map(plan.cost, kept)),
    )


def _too_long(tokens: int, shared: int, budget: Budget) -> InvalidInput:
    """The error for a prompt that is over the budget with nothing in it but what must be."""
    others, fewer = "any demonstration", ""
    if shared:
        others = f"any demonstration but the {shared} that all queries share"
        fewer = ", share fewer or shorter ones, or limit their fields by max_field_tokens"
    return InvalidInput(
        f"the prompt has {tokens} tokens without {others}, and {budget.reserve} are kept for the answer",
        expected=f"at most {budget.tokens} together",
        fix=f"raise the budget to {tokens + budget.reserve}, or reserve less{fewer}",
    )


def _order(plan: Plan, priority: Sequence[int] | None, scores: Sequence[float] | None, budget: Budget) -> Sequence[int]:
    """The usable positions that are not shared, those to be taken first in front."""
    order = [i for i in plan.usable if i not in plan.shared]
    if priority is not None:
        order.sort(key=lambda i: (priority[i], i))
    if budget.fill == "order" or budget.limit is None:
        return order
    if scores is None or len(scores) != len(plan.demonstrations):
        raise InvalidInput(
            "no scores" if scores is None else f"{len(scores)} scores for {len(plan.demonstrations)} demonstrations",
            expected="one for each demonstration, for a budget filled by density",
        )
    return by_density(plan, order, scores, budget.limit)


def _messages_plan(
    query: Example, demonstrations: Sequence[Example], writer: TextWriter, counter: TokenCounter, zero_shot: bool
) -> Plan:
    def cost(messages: Sequence[dict[str, str]]) -> int:
        return sum(counter.count(message["content"]) + MESSAGE_TOKENS for message in messages)

    def added(example: Example) -> int:
        return cost(_pair(example, template, slots))

    template, slots = writer.template, writer.slots
    # By identity: the demonstrations outlive the plan, so that a shortened copy never has the number of another.
    known = {id(example): added(example) for example in demonstrations}
    base = cost(_messages(query, (), template, slots, trigger=False)) + REPLY_TOKENS
    alone = cost(_messages(query, (), template, slots, trigger=zero_shot)) + REPLY_TOKENS

    def one(example: Example) -> int:
        found = known.get(id(example))
        return added(example) if found is None else found

    def tokens(chosen: Mapping[int, Example]) -> int:
        return base + sum(map(one, chosen.values())) if chosen else alone

    return Plan(demonstrations, one, base, tokens)


def _text_plan(
    query: Example, demonstrations: Sequence[Example], writer: TextWriter, counter: TokenCounter, zero_shot: bool
) -> Plan:
    separator = writer.template.separator
    refused: dict[int, tuple[str, int]] = {}
    known: dict[int, str] = {}
    for i, example in enumerate(demonstrations):
        try:
            known[id(example)] = writer.demonstration(example)
        except DelimiterCollision as collision:
            if writer.collisions != "drop":
                raise
            text = "".join(writer.template.fill(name, example, writer.slots) for name in ("text_input", "text_output"))
            refused[i] = f"contains the delimiter {collision.delimiter!r}", counter.count(text + separator)
    system = writer.system()
    with_any, alone = (writer.query(query, trigger=trigger) for trigger in (False, zero_shot))

    def block(example: Example) -> str:
        found = known.get(id(example))
        return writer.demonstration(example) if found is None else found

    def cost(example: Example) -> int:
        return counter.count(block(example) + separator)

    def tokens(chosen: Mapping[int, Example]) -> int:
        blocks = [block(chosen[i]) for i in sorted(chosen)]
        return counter.count(writer.join(system, blocks, with_any if chosen else alone))

    return Plan(demonstrations, cost, counter.count(writer.join(system, [], with_any)), tokens, refused)


def _skipped(plan: Plan, chosen: Mapping[int, Example], limit: int | None) -> tuple[Skipped, ...]:
    tokens = plan.tokens(chosen)
    skipped: list[Skipped] = []
    for i, example in enumerate(plan.demonstrations):
        if i in plan.refused:
            skipped.append(Skipped(example.id, *plan.refused[i]))
        elif i not in chosen and limit is not None:
            added = plan.tokens({**chosen, i: example}) - tokens
            skipped.append(Skipped(example.id, f"needs {added} tokens where {limit - tokens} are left", added))
    return tuple(skipped)


def _pair(example: Example, template: Template, slots: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": template.fill("input", example, slots)},
        {"role": "assistant", "content": template.fill("output", example, slots)},
    ]


def _messages(
    query: Example, demonstrations: Sequence[Example], template: Template, slots: Mapping[str, str], *, trigger: bool
) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    if system := template.fill("system", None, slots):
        messages.append({"role": "system", "content": system})
    for example in demonstrations:
        messages += _pair(example, template, slots)
    asked = template.fill("input", query, slots)
    messages.append({"role": "user", "content": f"{asked}\n\n{template.zero_shot}" if trigger else asked})
    return messages


def _check(
    demonstrations: Sequence[Example],
    priority: Sequence[int] | None,
    shared: Sequence[bool] | None,
    template: Template,
    form: str,
    collisions: str,
    zero_shot: bool,
) -> None:
    if priority is not None and len(priority) != len(demonstrations):
        raise InvalidInput(
            f"{len(priority)} priorities for {len(demonstrations)} demonstrations", expected="one for each"
        )
    if shared is not None and len(shared) != len(demonstrations):
        raise InvalidInput(
            f"shared says of {len(shared)} demonstrations, and there are {len(demonstrations)}", expected="one for each"
        )
    for name, value, allowed in (("form", form, get_args(Form)), ("collisions", collisions, get_args(Collisions))):
        if value not in allowed:
            raise InvalidInput(f"{name}={value!r}", expected=f"one of {list(allowed)}")
    if zero_shot and not template.zero_shot:
        raise InvalidInput(
            f"zero_shot=True with template {template.name!r}, which has no zero-shot line",
            fix="add one to the template",
        )
