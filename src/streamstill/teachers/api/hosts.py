"""Which addresses may be asked: the service itself, and the hosts that the user allows besides it."""

import asyncio
import importlib.util
import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamstill.teachers.api.jobs import Refused, TryAgain

if TYPE_CHECKING:
    import httpx

_PORTS = {"http": 80, "https": 443}
_LONGEST_URL = 4096  # characters


@dataclass(frozen=True)
class AllowedHosts:
    """The service at ``base_url``, on whatever network it is, and ``others``.

    An entry of ``others`` is ``cdn.example.com``, ``*.example.com`` (any host below it) or ``192.168.0.7:8000``.
    Without a port, 80 and 443 are meant. A name that stands for a private address is refused: write the address itself.

    Raises:
        ValueError: the base URL or an entry cannot be read.
    """

    base_url: str
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        base = _parsed(self.base_url)
        if base is None or base.query or base.fragment:
            raise ValueError(
                f"base_url must be like https://api.example.com/v1, without user, query and fragment, "
                f"got {_shown(self.base_url)!r}"
            )
        for entry in self.others:
            if _entry(entry) is None:
                raise ValueError(f"an allowed host is like cdn.example.com or *.example.com, got {entry!r}")

    @property
    def service(self) -> str:
        """The host of the service, with its port where that is not the usual one: for sentences."""
        base = _known(self.base_url)
        return base.netloc.decode("ascii")

    def at_service(self, path: str) -> "httpx.URL":
        """The URL of a path below the base URL."""
        return _known(f"{self.base_url.rstrip('/')}/{path}")

    def is_service(self, url: "httpx.URL") -> bool:
        """Whether a key may be sent there: same scheme, host and port as the base URL."""
        base = _known(self.base_url)
        return (url.scheme, url.host, _port(url)) == (base.scheme, base.host, _port(base))

    async def checked(self, told: str, *, relative_to: "httpx.URL | None" = None) -> "httpx.URL":
        """A URL that a server told us, if it may be asked.

        Raises:
            Refused: it is no http or https URL, its host is not allowed, or stands for a private address.
            TryAgain: its host is not found.
        """
        url = _parsed(told, relative_to or _known(self.base_url))
        if url is None:
            raise Refused(f"{self.service} gave an address that is no http or https URL: {_shown(told)!r}")
        if self.is_service(url):
            return url
        entry = next((entry for entry in self.others if _matches(entry, url)), None)
        if entry is None:
            raise Refused(
                f"{self.service} gave an address on another host, {url.netloc.decode('ascii')!r}; if it is to be "
                f"trusted, add it to allowed_hosts"
            )
        if not _is_address(url.host) and url.host != "localhost":
            await _require_public(url)
        return url


def require_httpx() -> None:
    """Raise the ModuleNotFoundError that says what to install, if it is missing."""
    if importlib.util.find_spec("httpx") is None:
        raise ModuleNotFoundError("httpx is not installed; run: pip install 'streamstill[api]'")


async def _require_public(url: "httpx.URL") -> None:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, _port(url), type=socket.SOCK_STREAM)
    except OSError as error:
        raise TryAgain(f"the host {url.host!r} is not found ({error.strerror})") from error
    private = [str(address[4][0]) for address in found if not _is_public(str(address[4][0]))]
    if private:
        raise Refused(
            f"the host {url.host!r} stands for the private address {private[0]}; if it is to be trusted, "
            f"add the address itself to allowed_hosts"
        )


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _matches(entry: str, url: "httpx.URL") -> bool:
    allowed = _entry(entry)
    if allowed is None:
        return False
    named = url.host.endswith(f".{allowed.host}") if entry.startswith("*.") else url.host == allowed.host
    return named and _port(url) in ((allowed.port,) if allowed.port else tuple(_PORTS.values()))


def _entry(entry: str) -> "httpx.URL | None":
    """An allowed host as a URL, of which only host and port count."""
    url = _parsed(f"host://{entry.removeprefix('*.')}", schemes=("host",))
    return url if url is not None and url.path in ("", "/") and not set("* %") & set(url.host) else None


def _parsed(
    text: str, base: "httpx.URL | None" = None, *, schemes: tuple[str, ...] = tuple(_PORTS)
) -> "httpx.URL | None":
    """The URL, or None: the same parser decides here and connects later, so that the two cannot disagree."""
    require_httpx()
    import httpx

    if len(text) > _LONGEST_URL or not text.isprintable() or "\\" in text:
        return None
    try:
        url = base.join(text) if base is not None else httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        return None
    return url if url.scheme in schemes and url.host and not url.userinfo else None


def _known(text: str) -> "httpx.URL":
    url = _parsed(text)
    assert url is not None, text
    return url


def _port(url: "httpx.URL") -> int:
    return url.port or _PORTS[url.scheme]


def _shown(url: str) -> str:
    """What of a URL may be shown: no user, no query, where secrets are."""
    text = url.partition("?")[0].partition("#")[0]
    scheme, slashes, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"[:200]
