"""One request to a reward server and its answer, in a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchgrpo.rewards.http import protocol
from branchgrpo.rewards.http.values import one_line

if TYPE_CHECKING:
    from requests import Session


class Exchange:
    """One request and its answer, in a thread of its own."""

    def __init__(
        self,
        session: Session,
        method: str,
        url: str,
        data: bytes | None,
        silence: float,
        limit: int,
    ):
        self.session = session
        self.method = method
        self.url = url
        self.data = data
        self.silence = silence
        self.limit = limit
        self.status = 0
        self.body = bytearray()
        self.abandoned = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until the answer is there, is over the limit, or nobody waits for it any more."""
        headers = {"Content-Type": protocol.MEDIA_TYPE}
        try:
            with self.session.request(
                self.method,
                self.url,
                data=self.data,
                headers=headers,
                timeout=self.silence,
                allow_redirects=False,
                stream=True,
            ) as response:
                self.status = response.status_code
                for chunk in response.iter_content(1 << 14):
                    self.body += chunk
                    if self.abandoned or len(self.body) > self.limit:
                        break
        except BaseException as error:  # raised again where it was asked for
            self.error = error


def reason_of(error: Exception) -> str:
    """An error of requests in one line: the innermost cause is what happened."""
    inner: BaseException = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    return f"{type(error).__name__}: {one_line(str(inner))}"
