"""Adapters from a prompt to an answer, one file each.

A backend is any callable that takes a prompt and returns text. One that sends `prompt.text` says so by an attribute
`reads = "text"`, so that prompts are counted and fitted as text. `load_backend` makes one from a short description;
nothing that a backend needs is imported before it is asked for.
"""

from __future__ import annotations

from retriever.backends.base import Backend, BackendSettings
from retriever.errors import InvalidInput

__all__ = ["Backend", "BackendSettings", "load_backend"]

_DEFAULTS = BackendSettings()
_FORMS = "openai:MODEL, transformers:PATH_OR_NAME, command:PROGRAM ARGS... (or command-json:PROGRAM ARGS...)"


def load_backend(spec: str, *, settings: BackendSettings = _DEFAULTS) -> Backend:
    """The backend that a description names.

    Args:
        spec: One of these; the first colon ends the kind, so that the rest may hold more of them.

            - `openai:MODEL`: an OpenAI-compatible chat server, at `settings.base_url` or OpenAI's own address;
              the key comes from the environment variable `OPENAI_API_KEY`.
            - `transformers:PATH_OR_NAME`: a causal language model in this process; it is loaded now.
            - `command:PROGRAM ARGS...`: a program that reads the text of the prompt on standard input and writes
              the answer to standard output. The line is split like a shell's (`shlex`); no shell ever sees it.
            - `command-json:PROGRAM ARGS...`: the same, reading `{"messages": [...]}`.
        settings: How to generate.

    Returns:
        A callable from prompt to answer. An answer is never empty: that is an error too.

    Raises:
        InvalidInput: The description cannot be understood, names no model or program, or `settings.base_url` is
            given to a backend that has no server.
        MissingDependency: The package `openai` is needed and not installed.
        BackendError: The model cannot be loaded.
    """
    kind, colon, rest = spec.partition(":")
    rest = rest.strip()
    # Only the kind is quoted: what follows the colon can be a command line with credentials in it.
    if not colon or kind not in ("openai", "transformers", "command", "command-json"):
        raise InvalidInput(f"a backend of the kind {kind!r}", expected=f"one of {_FORMS}")
    if not rest:
        raise InvalidInput(f"the backend {kind!r} with nothing after the colon", expected=f"one of {_FORMS}")
    if kind == "openai":
        from retriever.backends.openai_compatible import OpenAICompatible

        return OpenAICompatible(rest, settings=settings)
    if kind == "transformers":
        from retriever.backends.transformers_local import TransformersLocal

        return TransformersLocal(rest, settings=settings)
    from retriever.backends.command import Command

    return Command.from_line(rest, form="json" if kind == "command-json" else "text", settings=settings)
