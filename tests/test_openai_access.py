"""Access to OpenAI-compatible servers: whatever asks reads one key and one address, and shows neither's secrets."""

import base64
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from retriever.backends import BackendSettings, load_backend
from retriever.backends.openai_compatible import OpenAICompatible
from retriever.embedders import EmbedderSettings
from retriever.embedders.openai_compatible import OpenAIEmbedder
from retriever.errors import Incompatible, InvalidInput, MissingDependency
from retriever.evaluation.answers import backend_identity
from retriever.foreign_text import one_line
from retriever.openai_access import refuse_credentials, secrets_of, shown_url
from retriever.stored_embedder import StoredEmbedder

CANARY = "sk-CANARY-0123456789"
URL = "http://127.0.0.1:9/v1"


def embedder(url: str | None = None) -> OpenAIEmbedder:
    return OpenAIEmbedder("m", base_url=url)


def backend(url: str | None = None) -> OpenAICompatible:
    return load_backend("openai:m", settings=BackendSettings(base_url=url))


both = pytest.mark.parametrize("make", [embedder, backend])
Make = Callable[..., OpenAIEmbedder | OpenAICompatible]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def client_of(made: OpenAIEmbedder | OpenAICompatible) -> Iterator[object]:
    with made._client as client:
        yield client


# --- the key and the address ------------------------------------------------------------------------------------------


@both
def test_white_space_around_the_key_and_the_address_is_dropped(make: Make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {CANARY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", f"\t{URL}\r\n")
    with client_of(make()) as client:
        assert (client.api_key, str(client.base_url)) == (CANARY, f"{URL}/")


@both
def test_the_address_that_is_given_wins(make: Make, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other/v1")
    with client_of(make(URL)) as client:
        assert str(client.base_url) == f"{URL}/"


@both
@pytest.mark.parametrize("key", [None, "", " \n"])
def test_a_server_of_ones_own_needs_no_key_and_openai_does(make: Make, monkeypatch, key):
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with client_of(make(URL)) as client:
        assert client.api_key == "no-key"
    with pytest.raises(InvalidInput, match=r"no key for https://api\.openai\.com/v1; .*OPENAI_API_KEY"):
        make()


@both
@pytest.mark.parametrize("blank", ["", "  \n"])
def test_a_blank_address_is_openais_own(make: Make, monkeypatch, blank):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("OPENAI_BASE_URL", blank)
    with client_of(make()) as client:
        assert str(client.base_url) == "https://api.openai.com/v1/"


@both
@pytest.mark.parametrize("key", [f"{CANARY}\r\nX-Evil: 1", f"{CANARY}é"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(make: Make, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InvalidInput, match="OPENAI_API_KEY") as caught:
        make(URL)
    assert "CANARY" not in str(caught.value)


@both
def test_the_missing_client_is_named_with_its_extra(make: Make, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependency, match=r"demonstration-retriever\[openai\]"):
        make(URL)


@pytest.mark.parametrize("named", [URL, f" {URL}\n"])
def test_an_index_opens_its_endpoint_where_the_environment_names_the_same(monkeypatch, named):
    settings = EmbedderSettings("openai:m", base_url=URL)
    stored = StoredEmbedder({"name": "openai:m", "settings": asdict(settings)}, {})
    monkeypatch.setenv("OPENAI_BASE_URL", named)
    assert stored.source == settings
    monkeypatch.setenv("OPENAI_BASE_URL", f"{URL}/other")
    with pytest.raises(Incompatible, match=f"set OPENAI_BASE_URL={URL}"):
        _ = stored.source


def test_kept_answers_are_those_of_the_address_without_white_space(monkeypatch):
    settings = BackendSettings(max_tokens=9, temperature=0.5, seed=1)
    assert backend_identity("openai:m", settings) == '["openai:m", 9, 0.5, 1, null]'
    monkeypatch.setenv("OPENAI_BASE_URL", f" {URL}\n")
    assert backend_identity("openai:m", settings) == f'["openai:m", 9, 0.5, 1, "{URL}"]'
    assert backend_identity("command:cat", settings) == '["command:cat", 9, 0.5, 1, null]'


# --- what may be shown ------------------------------------------------------------------------------------------------


def test_credentials_in_a_base_url_are_not_shown():
    assert shown_url("https://me:p%40ss@host:8443/v1") == "https://host:8443/v1"
    assert shown_url("http://[::1]:8000") == "http://[::1]:8000"
    assert shown_url(None) == "https://api.openai.com/v1"


@pytest.mark.parametrize(
    "url", ["http://me:hunter2@h/v1", "http://hunter2@h/v1", "http://:hunter2@h/v1", "http://@h/v1"]
)
def test_where_an_address_is_stored_credentials_are_refused_unseen(url):
    with pytest.raises(InvalidInput, match="a base_url for http://h/v1 with credentials") as caught:
        refuse_credentials(url)
    assert "hunter2" not in str(caught.value)
    refuse_credentials("http://h/v1")


def test_the_secrets_of_a_client_are_its_key_its_login_and_the_password_in_it(monkeypatch):
    with client_of(backend(URL)) as client:
        assert secrets_of(client) == []  # the placeholder is none
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    with client_of(backend("http://me:hunter%402@127.0.0.1:9/v1")) as client:
        login = base64.b64encode(b"me:hunter@2").decode()
        assert secrets_of(client) == [CANARY, login, "hunter@2"]


def test_an_older_client_that_lists_the_key_among_its_headers_has_no_login():
    assert secrets_of(SimpleNamespace(api_key="sk-1", default_headers={"Authorization": "Bearer sk-1"})) == ["sk-1"]


def test_foreign_text_becomes_one_short_printable_line_without_secrets():
    assert one_line("a\n\tb \x1b[31mred\u202e key abcd-efgh.", secrets=["abcd", "abcd-efgh", "x", ""]) == (
        "a b [31mred key ***."
    )
    assert one_line("x" * 1000) == "x" * 299 + "…"
