"""The route to a host, with the proxy and certificates that the environment sets, and its faults.

Libraries quote the URL in their errors, and the key is in the URL: of their texts only the status
of a proxy is read. A proxy is named by its variable, host and port, never with its password.
"""

import errno
import importlib.util
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from urllib3.exceptions import LocationParseError, MaxRetryError, ProtocolError
from urllib3.exceptions import ProxyError as TunnelError

from etl.errors import ConfigError
from etl.runtime import hide_package

with hide_package("charset_normalizer"):  # it guesses encodings; JSON is UTF-8
    import requests

UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
NETWORK_REMEDY = "check the network, and whether HTTPS_PROXY has to name a proxy"
_TUNNEL_STATUS = re.compile(r"Tunnel connection failed: (\d{3})")
_OF_DATES, _OF_NAMES = {9, 10}, {62, 64}
"""OpenSSL's codes: not yet valid and expired; for another host and for another address."""


class Variable(NamedTuple):
    """An environment variable that is set; both parts are "" where none is."""

    name: str = ""
    value: str = ""


class RouteFault(NamedTuple):
    """The reason why no answer came."""

    problem: str
    remedy: str = ""


class Route(NamedTuple):
    """A host, with the variables that set a proxy and a CA bundle for it.

    `setting` is the one that names the host.
    """

    host: str
    proxy: Variable = Variable()
    bundle: Variable = Variable()
    setting: str = "base_url"

    def check(self) -> None:
        """Check the proxy's and the bundle's settings; nothing is connected.

        Raises:
            ConfigError: one of them cannot be used, whatever the network does.
        """
        if self.bundle.value:
            _check_bundle(self.bundle)
        if self.proxy.value:
            _check_proxy(self.proxy)

    def explain(self, error: Exception) -> RouteFault:
        """Return the fault behind an error of requests, urllib3 or the system."""
        causes = list(_causes(error))
        if any(isinstance(each, TunnelError) or _is_of_socks(each) for each in causes):
            return self._explain_proxy(causes)
        place = f"{self.host} (by {self._proxy_place})" if self.proxy.value else self.host
        if fault := self._explain_connection(place, causes):
            return fault
        if any(isinstance(cause, MaxRetryError) for cause in causes):
            # urllib3 gives up on connections it could not make, and passes on those that broke.
            return RouteFault(f"{place} cannot be reached", NETWORK_REMEDY)
        if isinstance(error, requests.ConnectionError | ProtocolError | ConnectionError):
            return RouteFault(f"{place} broke the connection off")
        return RouteFault(f"{place} sent no readable answer")

    @property
    def _proxy_place(self) -> str:
        return f"the proxy {_show_proxy(self.proxy)} of {self.proxy.name}"

    def _explain_connection(self, place: str, causes: Sequence[BaseException]) -> RouteFault | None:
        for cause in causes:
            match cause:
                case ssl.SSLCertVerificationError():
                    return self._explain_certificate(place, cause)
                case ssl.SSLError():
                    problem = f"{place} does not speak TLS as it should"
                    return RouteFault(problem, f"check {self.setting}")
                case socket.gaierror() | LocationParseError():
                    problem = f"the name of {place} cannot be resolved"
                    return RouteFault(problem, f"check {self.setting}, and this machine's DNS")
                case ConnectionRefusedError():
                    problem = f"{place} refuses connections"
                    return RouteFault(problem, f"check {self.setting} and its port")
                case OSError(errno=int(code)) if code in UNREACHABLE:
                    problem = f"{place} cannot be reached: {os.strerror(code).lower()}"
                    return RouteFault(problem, NETWORK_REMEDY)
        return None

    def _explain_certificate(self, place: str, error: ssl.SSLCertVerificationError) -> RouteFault:
        reason = error.verify_message.rstrip(".")
        problem = f"{place} shows a certificate that is not trusted ({reason})"
        if error.verify_code in _OF_DATES:
            return RouteFault(problem, "check this machine's clock and the certificate's dates")
        if error.verify_code in _OF_NAMES:
            return RouteFault(problem, f"check {self.setting}")
        if self.bundle.value:
            shown = f"{self.bundle.name} ({self.bundle.value})"
            return RouteFault(problem, f"add its issuer to the file of {shown}, or unset that")
        return RouteFault(problem, "if it is your own, set REQUESTS_CA_BUNDLE")

    def _explain_proxy(self, causes: Sequence[BaseException]) -> RouteFault:
        name = self.proxy.name
        place = self._proxy_place
        for cause in causes:
            # http.client tells the status in no other way.
            if isinstance(cause, OSError) and (status := _TUNNEL_STATUS.search(str(cause))):
                return self._explain_status(place, int(status[1]))
        fault = self._explain_connection(place, causes)
        if any(isinstance(cause, ssl.SSLError) for cause in causes):
            return RouteFault(f"{place} does not speak TLS", f"write http:// in {name}")
        problem = fault.problem if fault else f"{place} makes no connection to {self.host}"
        return RouteFault(problem, f"correct {name}, or name {self.host} in NO_PROXY")

    def _explain_status(self, place: str, status: int) -> RouteFault:
        if status != 407:
            problem = f"{place} answered {status} instead of connecting to {self.host}"
            return RouteFault(
                problem, f"check {self.setting}, or ask the proxy's operator to allow it"
            )
        if "@" in self.proxy.value:
            problem = f"{place} refuses the user and password given to it (407)"
            return RouteFault(problem, f"correct them in {self.proxy.name}")
        problem = f"{place} asks for a user and password (407)"
        return RouteFault(problem, f"write http://USER:PASSWORD@HOST:PORT into {self.proxy.name}")


def read_environment(url: str) -> dict[str, Any]:
    """Return the proxies and certificates that the environment sets for `url`."""
    environment: Any = requests.Session().merge_environment_settings(
        url, proxies={}, stream=True, verify=None, cert=None
    )
    return dict(environment)


def read_route(url: str, proxies: Mapping[str, str]) -> Route:
    """Return the route to the host of `url`, by one of `proxies` if they concern it."""
    parts = urlsplit(url)
    is_tls = parts.scheme.lower() == "https"
    bundle = _find_variable("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if is_tls else Variable()
    proxy = requests.utils.select_proxy(url, dict(proxies))
    if not proxy:
        return Route(parts.netloc, bundle=bundle)
    own = f"{parts.scheme}_proxy"
    name = _find_variable(own.lower(), own.upper(), "all_proxy", "ALL_PROXY").name
    return Route(parts.netloc, Variable(name or "the system's settings", proxy), bundle)


def _find_variable(*names: str) -> Variable:
    return next(
        (Variable(each, os.environ[each]) for each in names if os.environ.get(each)), Variable()
    )


def _check_bundle(bundle: Variable) -> None:
    path = Path(bundle.value)
    try:
        if not path.is_dir():
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:  # an OSError, whose words are OpenSSL's
        problem = "has no certificates in PEM format"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    else:
        return
    raise ConfigError(
        f"{bundle.name}: {path} {problem}",
        "correct or unset the variable: it names the CA certificates that https trusts",
    )


def _check_proxy(proxy: Variable) -> None:
    shown = f"{proxy.name} names the proxy {_show_proxy(proxy)}"
    scheme = proxy.value.partition("://")[0].lower() if "://" in proxy.value else "http"
    if scheme.startswith("socks"):
        if importlib.util.find_spec("socks") is None:
            raise ConfigError(
                f"{shown} of type SOCKS, for which a package is missing",
                "run `pip install PySocks`, or name an http:// proxy",
            )
    elif scheme not in {"http", "https"}:
        raise ConfigError(f"{shown} of type {scheme}, which is none", "name an http:// proxy")
    if not _is_place(_show_proxy(proxy)):
        raise ConfigError(f"{shown}, which is no HOST:PORT", "write http://HOST:PORT")


def _show_proxy(proxy: Variable) -> str:
    """Return host and port of a proxy's URL, however broken that is, without user or password."""
    rest = proxy.value.rpartition("://")[2].rpartition("@")[2]
    return re.split("[/?#]", rest)[0]


def _is_place(text: str) -> bool:
    try:
        parts = urlsplit(f"//{text}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors that it wraps, the outermost first."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop(0)
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            inner = [*each.args, getattr(each, "reason", None), each.__cause__, each.__context__]
            waiting += [one for one in inner if isinstance(one, BaseException)]


def _is_of_socks(error: BaseException) -> bool:
    return type(error).__module__ == "socks"  # PySocks, which may not be installed
