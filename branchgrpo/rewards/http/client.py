"""Remote reward: scores come from a server (server.py), so that a reward may live on another
machine or in another environment."""

from __future__ import annotations

from random import Random
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field

from branchgrpo.errors import UserError
from branchgrpo.rewards.base import Footprint, Resources, RewardOptions, Scorer
from branchgrpo.rewards.http import protocol
from branchgrpo.rewards.http.exchange import Exchange, reason_of
from branchgrpo.rewards.http.portions import portions
from branchgrpo.rewards.http.protocol import MB, Offer
from branchgrpo.rewards.http.values import ProtocolError
from branchgrpo.types import F32, U8, Sample

if TYPE_CHECKING:
    from requests import PreparedRequest, Session

RETRIED = (429, 502, 503, 504)
"""HTTP statuses of a server, or a gateway before it, that may answer later."""

LONGEST_WAIT = 60.0
"""Seconds between two tries, at most."""


class RemoteReward(RewardOptions):
    """Scores of the reward behind `url`, under the server's names."""

    name: Literal["remote"] = Field("remote", description="the reward")
    url: str = Field(
        description="address of the server, http(s)://HOST:PORT, with a path where a gateway "
        "needs one"
    )
    token_env: str = Field(
        "",
        description="environment variable, of the reward workers, with the server's token; "
        "empty: none is sent",
    )
    timeout_seconds: float = Field(
        120.0,
        gt=0,
        description="longest silence of the server: for a connection, and for the next bytes of "
        "an answer",
    )
    deadline_seconds: float = Field(
        600.0,
        gt=0,
        description="longest time of one try, from its begin to the answer's last byte, however "
        "much comes meanwhile",
    )
    retries: int = Field(
        4,
        ge=0,
        le=100,
        description="further tries of a request when the server cannot be reached, is silent, "
        "too slow, or busy",
    )
    backoff_seconds: float = Field(
        1.0,
        ge=0,
        description="wait before the first further try; doubles each time, half of it at random, "
        "at most 60 s",
    )
    max_mb: int = Field(
        256,
        ge=1,
        le=4000,
        description="largest request and largest answer, in MB of 10⁶ bytes; the server's own "
        "limit holds too",
    )
    batch: int = Field(
        64,
        ge=1,
        le=protocol.MAX_PICTURES,
        description="pictures per request, fewer where max_mb demands it",
    )
    report: tuple[str, ...] = Field(
        ("score",),
        min_length=1,
        description="the scores that are reported, of those the server offers",
    )
    train_on: str = Field(
        "",
        description="the score that trains, of those the server offers; empty: the one the "
        "server trains on",
    )

    whole_groups: bool = Field(
        False,
        description="the server's reward compares the pictures of a record and gets all of one at "
        "once; it says so where this is not set",
    )

    def reported(self) -> tuple[str, ...]:
        return self.report

    @property
    def elsewhere(self) -> bool:
        return True

    @property
    def grouped(self) -> bool:
        return self.whole_groups

    def check(self) -> None:
        """Raises UserError for a URL that cannot be one. The network is not touched."""
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets that don't match, a port that is no number
            fits = False
        if fits and "@" in parts.netloc:
            raise UserError("rewards.remote.url: expected no user or password in it, use token_env")
        if not fits or parts.query or parts.fragment or set(self.url) & set(" \t\r\n"):
            raise UserError(f"rewards.remote.url: expected http(s)://HOST:PORT, got {self.url!r}")

    def footprint(self, frames: int) -> Footprint:
        del frames
        return Footprint()  # another machine's

    def build(self, resources: Resources) -> Remote:
        """Asks the server once what it offers. Raises UserError where that is not what is
        wanted."""
        self.check()
        return Remote(self)


class Remote(Scorer):
    """A session with the server. Not for several threads at once."""

    def __init__(self, options: RemoteReward):
        self.options, self.url = options, options.url.rstrip("/")
        self.token = protocol.token_of("rewards.remote.token_env", options.token_env)
        self.session = self._new_session()
        self.random = Random()  # its own: training's random choices stay as they are
        self.limit = options.max_mb * MB
        self.offer = self._ask()
        wanted = [options.train_on or self.offer.trains_on, *options.report]
        if missing := sorted(set(wanted) - set(self.offer.names)):
            key = "train_on" if options.train_on in missing else "report"
            raise UserError(
                f"rewards.remote.{key}: expected scores of {list(self.offer.names)}, which "
                f"{self.url} offers, got {', '.join(missing)}"
            )
        if self.offer.grouped != options.whole_groups:
            raise UserError(
                f"rewards.remote.whole_groups: expected {str(self.offer.grouped).lower()}, as "
                f"{self.url} has it, got {str(options.whole_groups).lower()}"
            )
        self.trains_on, self.reports = wanted[0], options.report
        self.request_limit = min(self.limit, self.offer.max_bytes)

    def _new_session(self) -> Session:
        import requests

        session = requests.Session()
        session.auth = self._authorise  # also keeps a .netrc from sending something else
        session.headers["Accept-Encoding"] = "identity"
        return session

    def score(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        """As the server's scorer would. Raises UserError for what that scorer calls an error of the
        user, and RuntimeError where there is no answer, or none that can be used; both name the
        url."""
        batch = len(samples) if self.offer.grouped else self.options.batch
        found = portions(pixels, samples, limit=self.request_limit, most=batch, url=self.url)
        if len(found) > 1 and self.offer.grouped:
            raise UserError(
                f"rewards.remote.max_mb: expected all {len(samples)} pictures of a record to fit "
                f"the request limit of {self.url}, {self.request_limit} bytes"
            )
        parts = [self._portion(pixels[rows], samples[rows]) for rows in found]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.offer.names}

    def _portion(self, pixels: U8, samples: list[Sample]) -> dict[str, F32]:
        body = self._answer(protocol.pack_request(pixels, samples))
        try:
            return protocol.unpack_scores(body, self.limit, self.offer, len(samples))
        except ProtocolError as error:
            raise RuntimeError(f"remote reward {self.url}: {error}") from error

    def _answer(self, request: bytes) -> bytes:
        """The body of the server's 200, after as many tries as it takes."""
        import requests

        tries = 1 + self.options.retries
        for index in range(tries):
            try:
                status, body = self._send("POST", "/score", request)
            except requests.RequestException as error:
                cause = reason_of(error)
            else:
                if status == 200:
                    return body
                cause = self._error(status, body)
                if status == 422:
                    raise UserError(f"remote reward {self.url}: {cause}")
                if status not in RETRIED:
                    raise RuntimeError(f"remote reward {self.url}: {cause}")
            if index + 1 < tries:
                wait = min(LONGEST_WAIT, self.options.backoff_seconds * 2**index)
                sleep(wait * self.random.uniform(0.5, 1.0))
        raise RuntimeError(
            f"remote reward {self.url}: no answer in {tries} tries, the last: {cause}"
        )

    def _ask(self) -> Offer:
        import requests

        try:
            status, body = self._send("GET", "/health", None)
            if status == 200:
                return protocol.unpack_offer(body, self.limit)
        except requests.RequestException as error:
            raise UserError(
                f"rewards.remote.url: expected a reward server at {self.url}, got "
                f"{reason_of(error)}"
            ) from error
        except (ProtocolError, RuntimeError) as error:
            raise UserError(
                "rewards.remote.url: expected a reward server of protocol version "
                f"{protocol.VERSION} at {self.url}, got {error}"
            ) from error
        key = "token_env" if status == 401 else "url"
        raise UserError(
            f"rewards.remote.{key}: expected {self.url} to say what it offers, got "
            f"{self._error(status, body)}"
        )

    def _send(self, method: str, path: str, data: bytes | None) -> tuple[int, bytes]:
        """Status and body of one exchange. Raises requests' errors, Timeout past the deadline too,
        and RuntimeError for a body over the limit.

        requests bounds only silence: a server that sends a byte now and then, in headers or body,
        would hold its caller for hours. So a thread waits in its place, and is left behind at the
        deadline with the session and its connections.
        """
        import requests

        exchange = Exchange(
            session=self.session,
            method=method,
            url=self.url + path,
            data=data,
            silence=self.options.timeout_seconds,
            limit=self.limit,
        )
        thread = Thread(target=exchange.run, name="remote reward", daemon=True)
        thread.start()
        thread.join(self.options.deadline_seconds)
        if thread.is_alive():
            exchange.abandoned = True
            self.session = self._new_session()
            raise requests.Timeout(
                f"no whole answer in {self.options.deadline_seconds:g} s (deadline_seconds)"
            )
        if exchange.error:
            raise exchange.error
        if len(exchange.body) > self.limit:
            raise RuntimeError(
                f"remote reward {self.url}: expected an answer of at most {self.limit} "
                "bytes (max_mb), got more"
            )
        return exchange.status, bytes(exchange.body)

    def _error(self, status: int, body: bytes) -> str:
        """What an answer other than 200 says."""
        try:
            return f"HTTP {status}: {protocol.unpack_error(body, self.limit)}"
        except ProtocolError:  # a gateway's page, for example
            return f"HTTP {status}"

    def _authorise(self, request: PreparedRequest) -> PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request
