"""Access to servers that speak OpenAI's protocol, for whatever asks them: the address, the key, the client.

Both come from the environment as the client's own variables: `OPENAI_BASE_URL`, which a setting may stand in for, and
`OPENAI_API_KEY`, which nothing may. White space around either is dropped: it comes from files and here-documents and is
never part of one.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from retriever.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
_OPENAI = "https://api.openai.com/v1"
# The client refuses to start without a key; servers of one's own take any.
_NO_KEY = "no-key"
_BASIC = "Basic "


def environment_url() -> str | None:
    """The base URL that the environment names, unchecked; None when it names none."""
    return os.environ.get(URL_VARIABLE, "").strip() or None


def environment_key() -> str:
    """The key that the environment holds; empty when it holds none."""
    return os.environ.get(KEY_VARIABLE, "").strip()


def split_base_url(url: str) -> SplitResult:
    """The parts of a base URL, once it is known to be one.

    Args:
        url: The address.

    Returns:
        Its parts, user name and password among them.

    Raises:
        InvalidInput: It is not `http(s)://HOST[:PORT][/PATH]`. The message never quotes it, because a malformed
            address can hold a password anywhere.
    """
    # Raised outside of any handler: the errors of urlsplit quote what they could not read.
    problem = _base_url_problem(url)
    if problem:
        raise InvalidInput(f"a base_url with {problem}", expected="an address such as http://localhost:8000/v1")
    return urlsplit(url)


def _base_url_problem(url: str) -> str:
    """What keeps a text from being a base URL; empty when nothing does."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "a malformed host or port"
    if parts.scheme not in ("http", "https"):
        return "no http:// or https:// in front"
    if not parts.hostname or port == 0:
        return "no host, or the port 0"
    if parts.query or parts.fragment:
        return "a query or fragment, which would be lost when the path of the request is added"
    if any(character.isspace() or not character.isprintable() for character in url):
        return "white space or control characters"
    return ""


def shown_url(url: str | None) -> str:
    """A base URL as it may be shown, without user name and password; for None, OpenAI's own.

    Raises:
        InvalidInput: As `split_base_url`.
    """
    if url is None:
        return _OPENAI
    parts = split_base_url(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def refuse_credentials(url: str) -> None:
    """Refuses a base URL that carries a secret, where it would be stored and printed.

    Raises:
        InvalidInput: It has a user name or a password, which the message leaves out, or as `split_base_url`.
    """
    parts = split_base_url(url)
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            f"a base_url for {shown_url(url)} with credentials",
            expected="scheme://host/path alone",
            fix=f"give the key in the environment variable {KEY_VARIABLE}",
        )


def openai_client(url: str | None, *, purpose: str, timeout: float, retries: int) -> OpenAI:
    """A client with the key of the environment; sends nothing.

    Args:
        url: Base URL of the server; None: OpenAI's own. A user name and password in it are sent as basic
            authentication, in place of the key.
        purpose: What needs the client, for the message when the package is missing.
        timeout: Seconds per attempt.
        retries: Further attempts after a failure that may pass.

    Raises:
        MissingDependency: The package `openai` is not installed.
        InvalidInput: The URL is malformed, there is neither a key nor a URL, or the key cannot be sent in a header.
    """
    try:
        from openai import OpenAI
    except ImportError as error:
        raise MissingDependency("openai", "openai", purpose=purpose) from error
    key = environment_key()
    if not key and url is None:
        raise InvalidInput(
            f"no key for {shown_url(url)}",
            expected=f"one in the environment variable {KEY_VARIABLE}",
            fix="set it, or give the base_url of a server that needs none",
        )
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput(f"{KEY_VARIABLE} holds characters that no key has", expected="printable ASCII")
    return OpenAI(
        api_key=key or _NO_KEY,
        # Without user name and password, because HTTP clients write the address into their logs.
        base_url=shown_url(url),
        timeout=timeout,
        max_retries=retries,
        default_headers=_login(url),
    )


def _login(url: str | None) -> dict[str, str] | None:
    """The header that carries the user name and password of a URL."""
    parts = None if url is None else split_base_url(url)
    if parts is None or parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": _BASIC + base64.b64encode(pair.encode()).decode()}


def secrets_of(client: OpenAI) -> list[str]:
    """Everything of a client that authenticates; read off it, so that there is no second copy to guard."""
    key = client.api_key
    secrets = [] if key == _NO_KEY else [key]
    # Older clients list the key among these headers.
    header = str(client.default_headers.get("Authorization", ""))
    if header.startswith(_BASIC):
        basic = header.removeprefix(_BASIC)
        secrets += [basic, base64.b64decode(basic).decode().partition(":")[2]]
    return secrets
