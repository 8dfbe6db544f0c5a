"""A chat server that speaks OpenAI's protocol as a backend: OpenAI itself, vLLM, llama.cpp, Ollama and others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from retriever.backends.base import BackendSettings, messages_of
from retriever.errors import BackendError
from retriever.foreign_text import one_line
from retriever.openai_access import KEY_VARIABLE, environment_url, openai_client, secrets_of, shown_url

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, OpenAIError
    from openai.types.chat import ChatCompletionMessageParam

    from retriever.prompting.assembler import Prompt

_OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class OpenAICompatible:
    """Asks a server's `/chat/completions` with the messages of the prompt.

    The key is read from `OPENAI_API_KEY` when the backend is made, and from nowhere else; a server at a base URL of
    its own may do without one. It never appears in a repr, an error or a log record. A base URL comes from the
    settings, else from `OPENAI_BASE_URL`, else it is OpenAI's. A user name and password in it are sent as basic
    authentication, in place of the key.

    How the settings are honoured: `max_tokens` is sent as `max_completion_tokens` to OpenAI and as `max_tokens` to a
    server of one's own (older servers know only that), and under the other name once a server asks for it.
    `temperature` and `seed` are sent as they are (no `seed` for None): a server may refuse a value, which is an error
    here, or ignore it, which cannot be seen from here. `timeout` bounds each wait of an attempt: for the connection,
    and for the next bytes of the answer. `retries` repeats after a failed connection, a timeout and the statuses 408,
    409, 429 and 5xx, with the pauses that the `openai` client makes or the server asks for.

    An answer that was cut off at `max_tokens` is returned like any other.
    """

    def __init__(self, model: str, *, settings: BackendSettings) -> None:
        """Prepares the client; sends nothing.

        Args:
            model: The model's name as the server knows it.
            settings: How to generate.

        Raises:
            MissingDependency: The package `openai` is not installed.
            InvalidInput: There is no key and no base URL, the key cannot be sent in a header, or the base URL in the
                environment is malformed.
        """
        url = settings.base_url or environment_url()
        self._model = model
        self._settings = settings
        self._shown_url = shown_url(url)
        self._limit_name = "max_completion_tokens" if _is_openai(self._shown_url) else "max_tokens"
        self._client = openai_client(
            url, purpose="the backend openai:MODEL", timeout=settings.timeout, retries=settings.retries
        )

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._model!r}, base_url={self._shown_url!r}, settings={self._settings!r})"

    def __call__(self, prompt: Prompt) -> str:
        """The server's answer.

        Raises:
            InvalidInput: The prompt cannot be written as UTF-8.
            BackendError: The server cannot be reached, refuses the request, fails after all retries, or answers
                with something that holds no text.
        """
        from openai import OpenAIError

        messages = messages_of(prompt)
        try:
            body = self._ask(messages)
        except OpenAIError as error:
            failure = self._explain(error)
        else:
            return self._text(body)
        # Raised out here so that it carries no context: the client's exceptions hold the request and the server's
        # own words, and either can hold the key.
        raise failure

    def _ask(self, messages: list[dict[str, str]]) -> bytes:
        from openai import BadRequestError

        limit = self._limit_name
        try:
            return self._post(messages, limit)
        except BadRequestError as error:
            other = _OTHER_NAME[limit]
            if other not in str(error):
                raise
        self._limit_name = other
        return self._post(messages, other)

    def _post(self, messages: list[dict[str, str]], limit: str) -> bytes:
        options: dict[str, object] = {"temperature": self._settings.temperature, limit: self._settings.max_tokens}
        if self._settings.seed is not None:
            options["seed"] = self._settings.seed
        # The raw body, because the client builds its objects unchecked from whatever a server sends.
        response = self._client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=cast("list[ChatCompletionMessageParam]", messages),
            extra_body=options,
        )
        return response.content

    def _text(self, body: bytes) -> str:
        try:
            completion: object = json.loads(body)
        except (ValueError, RecursionError):
            completion = None
        choice = _first_choice(completion)
        if choice is None:
            raise BackendError(
                f"{self._shown_url} returned {self._line(body.decode(errors='replace')) or 'nothing'}",
                expected="a chat completion",
                fix="check that base_url is that of an OpenAI-compatible server, often ending in /v1",
            )
        message = choice.get("message")
        fields: dict[str, object] = message if isinstance(message, dict) else {}
        content = fields.get("content")
        if isinstance(content, str) and content:
            return content
        reason = self._line(str(choice.get("finish_reason")))
        refusal = f", refusal: {self._line(str(fields['refusal']))}" if fields.get("refusal") else ""
        raise BackendError(
            f"{self._shown_url} returned no text (finish_reason {reason}{refusal})",
            fix="raise max_tokens" if reason == "length" else "check the prompt and the model",
        )

    def _explain(self, error: OpenAIError) -> BackendError:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APITimeoutError):
            return BackendError(
                f"{self._shown_url} did not answer within {self._settings.timeout:g} s{self._attempts()}",
                fix="raise the timeout",
            )
        if isinstance(error, APIConnectionError):
            return BackendError(
                f"{self._shown_url} cannot be reached: {self._line(_cause(error))}{self._attempts()}",
                fix="start the server, or correct base_url",
            )
        if isinstance(error, APIStatusError):
            return self._explain_status(error)
        return BackendError(f"{self._shown_url} could not be asked: {self._line(str(error))}")

    def _explain_status(self, error: APIStatusError) -> BackendError:
        status = error.status_code
        fixes = {
            400: "check the model's name, its context length and the settings",
            401: f"set the environment variable {KEY_VARIABLE} to a key that this server accepts",
            403: f"use a key in {KEY_VARIABLE} that may use the model {self._model!r}",
            404: f"check that the server has the model {self._model!r} and that base_url is complete, often with /v1",
            413: "choose fewer demonstrations",
            422: "check the model's name and the settings",
            429: "wait, raise retries, or check the quota of the account",
        }
        fix = fixes.get(status, "look at the server's log" if status >= 500 else "check the model's name and base_url")
        attempts = self._attempts() if status in (408, 409, 429) or status >= 500 else ""
        return BackendError(f"{self._shown_url} answered {status}: {self._line(_said(error))}{attempts}", fix=fix)

    def _attempts(self) -> str:
        return f" ({self._settings.retries + 1} attempts)" if self._settings.retries else ""

    def _line(self, text: str) -> str:
        return one_line(text, secrets=secrets_of(self._client))


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def _first_choice(completion: object) -> dict[str, object] | None:
    choices = completion.get("choices") if isinstance(completion, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _cause(error: APIConnectionError) -> str:
    """What went wrong below the client, which itself only says that something did."""
    return str(error.__cause__ or "") or str(error)


def _said(error: APIStatusError) -> str:
    """The server's own words: OpenAI and most others put them under `message`, FastAPI servers under `detail`."""
    body = error.body
    words = (
        next((body[name] for name in ("message", "detail") if body.get(name)), body) if isinstance(body, dict) else body
    )
    return str(words or error.message)
