"""Where the server is, and the key that must stay out of every file and message."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from diva_engine.records import UserError

SHORTEST_SECRET = 8  # "EMPTY" and the like are no secrets: local servers take any word, and texts may hold it


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and the model to ask there."""

    base_url: str  # as in OpenAI's own clients, ending in /v1 as a rule
    model: str
    _key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers

    def proxy(self) -> str | None:
        """The proxy that the environment names for this address (HTTPS_PROXY and the like, NO_PROXY)."""
        address = urlsplit(self.base_url)
        if proxy_bypass(address.netloc):
            return None
        return getproxies().get(address.scheme)

    def redact(self, text: str) -> str:
        """`text` without the key, which servers like to repeat in their errors."""
        return text.replace(self._key, "[key]") if len(self._key) >= SHORTEST_SECRET else text


def open_endpoint(base_url: str, model: str, key_name: str) -> Endpoint:
    """The endpoint, with the key of environment variable `key_name`; without a key where it is not set.

    Raises:
        UserError: the address or the key is none. No message shows the key or an address with a password.
    """
    try:
        address = urlsplit(base_url)
        has_port = address.port is None or address.port > 0
    except ValueError:
        raise UserError(f"--base-url {base_url!r} is no address; give one like http://localhost:8000/v1") from None
    if address.username or address.password:
        raise UserError(f"--base-url holds a user or password; put the key into the environment variable {key_name}")
    if address.scheme not in ("http", "https") or not address.hostname or not has_port:
        raise UserError(f"--base-url {base_url!r} is no address; give one like http://localhost:8000/v1")
    if address.query or address.fragment:
        raise UserError("--base-url must end with the path, as in http://localhost:8000/v1; take off what follows it")
    key = os.environ.get(key_name, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise UserError(f"the key in {key_name} holds a space or a letter that no header can; set it again")
    return Endpoint(base_url, model, key)
