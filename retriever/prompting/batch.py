"""Requests of the vendors' batch endpoints: one JSON object for each prompt.

OpenAI (and servers that speak its format) takes a JSONL file of such objects, at most 50,000 requests and 200 MB.
Anthropic takes them as the list `requests` of one call, at most 100,000. Neither limit is checked here, for a record
does not know its neighbours.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from retriever.errors import InvalidInput
from retriever.example import Json
from retriever.prompting.assembler import Prompt

_ANTHROPIC_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_HASHED_ID = re.compile(r"sha256-[0-9a-f]{57}")


@dataclass(frozen=True)
class BatchSettings:
    """What a request says beside its prompt.

    Attributes:
        model: The vendor's name of the model.
        max_tokens: The most tokens of the answer.
        temperature: The sampling temperature, 0 to 2; None to leave it out, which some models require.
    """

    model: str
    max_tokens: int = 1024
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise InvalidInput("no model for the batch requests", expected="the vendor's name of a model")
        if self.max_tokens < 1:
            raise InvalidInput(f"max_tokens={self.max_tokens}", expected="at least 1")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise InvalidInput(f"temperature={self.temperature}", expected="a number from 0 to 2, or None")


def openai_batch(prompt: Prompt, *, custom_id: str, settings: BatchSettings) -> dict[str, Json]:
    """A line of an OpenAI batch file, for `/v1/chat/completions`.

    Args:
        prompt: Its messages are sent as they are.
        custom_id: What the answer is matched by, unique within the file; sent as it is.
        settings: `max_tokens` is sent as `max_completion_tokens`, the name that all current models take.

    Raises:
        InvalidInput: The id is empty.
    """
    if not custom_id:
        raise InvalidInput("an empty custom_id", expected="what the answer is to be matched by")
    body: dict[str, Json] = {
        "model": settings.model,
        "messages": [dict(message) for message in prompt.messages],
        "max_completion_tokens": settings.max_tokens,
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def anthropic_batch(prompt: Prompt, *, custom_id: str, settings: BatchSettings) -> dict[str, Json]:
    """A member of `requests` of Anthropic's Message Batches.

    The system message is a field of its own, and the messages are user and assistant turns in alternation.

    Args:
        prompt: Its messages are sent as they are.
        custom_id: What the answer is matched by, unique within the batch; sent as `anthropic_id` maps it.
        settings: The temperature must not exceed 1.

    Raises:
        InvalidInput: A message without visible text, which the endpoint refuses; a temperature over 1; an empty id.
    """
    if settings.temperature is not None and settings.temperature > 1:
        raise InvalidInput(f"temperature={settings.temperature}", expected="at most 1 for Anthropic")
    for position, message in enumerate(prompt.messages):
        if not message["content"].strip():
            raise InvalidInput(
                f"message {position} ({message['role']}) of {custom_id!r} has no visible text",
                expected="text in every message, which Anthropic requires",
                fix="leave the example out, or use a template whose turns are never empty",
            )
    params: dict[str, Json] = {"model": settings.model, "max_tokens": settings.max_tokens}
    if settings.temperature is not None:
        params["temperature"] = settings.temperature
    if system := "\n\n".join(message["content"] for message in prompt.messages if message["role"] == "system"):
        params["system"] = system
    params["messages"] = [dict(message) for message in prompt.messages if message["role"] != "system"]
    return {"custom_id": anthropic_id(custom_id), "params": params}


def anthropic_id(custom_id: str) -> str:
    """The id under which Anthropic answers: it takes only 1 to 64 of the characters `a-z A-Z 0-9 _ -`.

    Such an id is kept. Any other becomes `sha256-` and the first 57 hexadecimal digits of the SHA-256 of its UTF-8
    bytes; so does one that already looks like that, so that no two ids become one.

    Raises:
        InvalidInput: The id is empty.
    """
    if not custom_id:
        raise InvalidInput("an empty custom_id", expected="what the answer is to be matched by")
    if _ANTHROPIC_ID.fullmatch(custom_id) and not _HASHED_ID.fullmatch(custom_id):
        return custom_id
    return "sha256-" + hashlib.sha256(custom_id.encode("utf-8", errors="surrogatepass")).hexdigest()[:57]
