"""What every backend shares: its type, its settings, and what it sends of a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

from retriever.errors import InvalidInput
from retriever.openai_access import shown_url, split_base_url

if TYPE_CHECKING:
    from retriever.prompting.assembler import Form, Prompt

_LARGEST_SEED = 2**63 - 1


Backend: TypeAlias = "Callable[[Prompt], str]"


def form_read(backend: Backend) -> Form:
    """The form of a prompt that a backend sends, in which it is to be counted and fitted: what it says as `reads`."""
    form: Form = getattr(backend, "reads", "messages")
    return form


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """How a backend generates. Each backend says in its own docstring how it honours every field.

    Attributes:
        max_tokens: The most tokens to generate, at least 1.
        temperature: 0 for greedy decoding; above it, sampling at that temperature.
        timeout: Seconds until an attempt is given up, above 0.
        base_url: Address of an OpenAI-compatible server, such as `http://localhost:8000/v1`; None for the
            backend's own. Only the `openai` backend has one, the others refuse it. Any user name and password in
            it are used and never shown.
        retries: How often a failed attempt is repeated where repeating can help.
        seed: Seed of the sampling, 0 to 2**63 - 1; None leaves it to chance.

    Raises:
        InvalidInput: A field has a value that cannot be used.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    timeout: float = 60.0
    base_url: str | None = None
    retries: int = 2
    seed: int | None = 0

    def __post_init__(self) -> None:
        _require(_is_whole(self.max_tokens, 1), "max_tokens", self.max_tokens, "a whole number of at least 1")
        _require(_is_number(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "0 or above")
        _require(_is_number(self.timeout) and self.timeout > 0, "timeout", self.timeout, "seconds above 0")
        _require(_is_whole(self.retries, 0), "retries", self.retries, "a whole number of at least 0")
        seed_is_good = self.seed is None or (_is_whole(self.seed, 0) and self.seed <= _LARGEST_SEED)
        _require(seed_is_good, "seed", self.seed, f"None or a whole number from 0 to {_LARGEST_SEED}")
        if self.base_url is not None:
            split_base_url(self.base_url)

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.base_url is not None:
            shown["base_url"] = shown_url(self.base_url)
        return f"BackendSettings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _require(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise InvalidInput(f"the backend setting {name}={value!r}", expected=expected)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """The role and content of every message of a prompt.

    Raises:
        InvalidInput: A content cannot leave the process as UTF-8.
    """
    return [{"role": message["role"], "content": _encodable(message["content"])} for message in prompt.messages]


def text_of(prompt: Prompt) -> str:
    """The text form of a prompt; backends that send messages never ask for it, as it can fail where they do not.

    Raises:
        InvalidInput: It cannot leave the process as UTF-8.
        DelimiterCollision: As `prompt.text` raises it.
    """
    return _encodable(prompt.text)


def _encodable(text: str) -> str:
    """The text, once it is known to hold no lone surrogate (U+D800 to U+DFFF), which is half a character.

    It is not replaced, as it is for an embedder: the answer would be one to another prompt.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"a prompt with the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}",
            expected="text that can be written as UTF-8",
            fix="repair the example or query",
        ) from error
    return text


def refuse_base_url(settings: BackendSettings, backend: str) -> None:
    """Refuses a base URL where there is no server to find.

    Raises:
        InvalidInput: `settings.base_url` is set.
    """
    if settings.base_url is not None:
        raise InvalidInput(f"a base_url for the backend {backend!r}", fix="leave it out, or use openai:MODEL")
