"""URLs of databases: which driver they mean, and what in them must not be shown or written down."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_HIDDEN = "***"


def with_driver(url: str) -> str:
    """A URL that names PostgreSQL alone with psycopg as its driver, which before 2.1 was not SQLAlchemy's choice."""
    for scheme in ("postgresql", "postgres"):
        if url.startswith(f"{scheme}://"):
            return url.replace(scheme, "postgresql+psycopg", 1)
    return url


def masked(url: str) -> str:
    """A storage URL with its password and the values of its query hidden; all of it where it is no URL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return _HIDDEN
    if not _secrets(parsed):
        return url
    hidden = parsed.set(query=dict.fromkeys(parsed.query, _HIDDEN))
    return hidden.render_as_string(hide_password=True).replace(quote(_HIDDEN), _HIDDEN)


def has_secrets(url: str) -> bool:
    """Whether a storage URL holds what must not be written down: a password or a query."""
    try:
        return bool(_secrets(make_url(url)))
    except ArgumentError:
        return True


def is_server(url: str) -> bool:
    """Whether a storage URL leads to another program, and so perhaps to another machine, not to a file."""
    try:
        return make_url(url).get_backend_name() != "sqlite"
    except ArgumentError:
        return True


def _secrets(url: URL) -> list[str]:
    values = [url.password] if url.password else []
    for value in url.query.values():
        values += [value] if isinstance(value, str) else value
    return [each for each in values if each]


def without_secrets(text: str, storage: str | None) -> str:
    """A driver's message without the passwords that it may repeat, plain or percent-encoded."""
    text = re.sub(r"//[^@\s]*@", f"//{_HIDDEN}@", text)
    if storage is None:
        return text
    text = text.replace(storage, masked(storage))
    try:
        secrets = _secrets(make_url(storage))
    except ArgumentError:
        return text
    for secret in secrets:
        for form in (secret, quote(secret, safe=""), quote_plus(secret)):
            text = text.replace(form, _HIDDEN)
    return text


def reason_of(error: Exception, url: str | None) -> str:
    """What a database's exception says, in a line without the secrets of the URL."""
    if isinstance(error, ModuleNotFoundError) and error.name == "psycopg":
        return "psycopg is not installed (pip install 'loratune[postgresql]')"
    return without_secrets(str(error.__cause__ or error).partition("\n")[0], url)
