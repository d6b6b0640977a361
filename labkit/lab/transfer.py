"""One file from one server, continued where it broke off; `labkit.lab.download` decides what is asked.

Every failure is a `DownloadError`, which says what to do next.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import requests

PIECE = 2**16
BY_HAND = "or put the file into a folder and name that folder in LABKIT_MIRROR"
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE)


class DownloadError(OSError):
    """A file that could not be had, or is not what it should be."""


class LocalError(DownloadError):
    """The fault lies on this machine, such as a full disk: another source would not help."""


class BrokenOff(Exception):
    """A transfer that may succeed when tried again."""


@dataclass(frozen=True)
class Limits:
    """Seconds to wait for a connection and for each piece of data; how often to try again.

    Only tries that bring nothing new count; before try n there are backoff · 2ⁿ⁻¹ seconds of rest.
    """

    connect: float = 10
    read: float = 30
    retries: int = 3
    backoff: float = 1


def megabytes(size: int) -> str:
    """A number of bytes in MB, for people."""
    return f"{size / 1e6:,.1f} MB"


def say(text: str, quiet: bool = False) -> None:
    """A line for the reader, on standard error."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


@dataclass
class Transfer:
    """One file's way from a server into `part`."""

    url: str
    part: Path
    size: int | None
    limits: Limits
    quiet: bool
    http: bool
    etag: str | None = None

    def run(self) -> None:
        """Bring the whole file, in as many tries as the limits allow."""
        self._check_scheme(self.url)
        failures, furthest = 0, self._have()
        while True:
            try:
                return self._try()
            except BrokenOff as error:
                failures = 1 if self._have() > furthest else failures + 1
                furthest = max(furthest, self._have())
                if failures > self.limits.retries:
                    tries = "1 try" if failures == 1 else f"{failures} tries"
                    kept = f" ({megabytes(furthest)} are kept)" if self._have() else ""
                    raise DownloadError(
                        f"{self.url}: {error}, after {tries}; try again, which goes on where it "
                        f"stopped{kept}, {BY_HAND}"
                    ) from error.__cause__
                time.sleep(self.limits.backoff * 2 ** (failures - 1))

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _check_scheme(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https" or (
            parts.scheme == "http" and (self.http or _is_loopback(parts.hostname or ""))
        ):
            return
        raise DownloadError(f"{url} is not https, so anyone on the way could change it; {BY_HAND}")

    def _try(self) -> None:
        import requests

        have = self._have()
        if self.size is not None and have > self.size:
            self.part.unlink()
            have = 0
        if have and have == self.size:
            return
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.etag:
                headers["If-Range"] = self.etag
        timeout = (self.limits.connect, self.limits.read)
        try:
            with requests.get(self.url, headers=headers, stream=True, timeout=timeout) as response:
                self._receive(response, self._start(response, have))
        except requests.exceptions.SSLError as error:
            raise DownloadError(
                f"{self.url}: the connection is not safe ({error}); check the clock and the "
                f"certificates of this machine, {BY_HAND}"
            ) from error
        except requests.RequestException as error:
            raise BrokenOff(_reason(error)) from error
        except DownloadError:
            if not self._have():
                self.part.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise LocalError(
                f"cannot write {self.part}: {error.strerror}; make room there and try again, which "
                "goes on where it stopped"
            ) from error

    def _start(self, response: requests.Response, have: int) -> int:
        """Where in the file the answer's body begins; DownloadError where there is no such body."""
        status = response.status_code
        for url in (*(hop.url for hop in response.history), response.url):
            self._check_scheme(url)
        if status in (408, 429) or status >= 500:
            raise BrokenOff(f"the server answers {status} {response.reason}")
        span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        start = int(span.group(1)) if status == 206 and span else 0
        if have and (status == 416 or start not in (0, have)):
            self.part.unlink()
            raise BrokenOff("the server cannot go on where the last transfer stopped")
        if status not in (200, 206):
            raise DownloadError(
                f"{self.url}: the server answers {status} {response.reason}; the file may have "
                f"moved: look for it on its publisher's page, {BY_HAND}"
            )
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise self._web_page()
        length = response.headers.get("Content-Length", "")
        if self.size is not None and length.isdigit() and start + int(length) != self.size:
            raise DownloadError(
                f"{self.url}: the server has a file of {start + int(length):,} bytes, expected "
                f"{self.size:,}; it is another file: look on its publisher's page, {BY_HAND}"
            )
        tag = response.headers.get("ETag", "")
        self.etag = None if tag.startswith("W/") else tag or None
        return start

    def _web_page(self) -> DownloadError:
        return DownloadError(
            f"{self.url}: the server sent a web page instead of the file; a network that asks for "
            f"a login does so: open a browser, then try again, {BY_HAND}"
        )

    def _receive(self, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else self.size
        response.raw.headers.pop("Content-Encoding", None)  # some name .gz so: it is not undone
        name = self.part.name.removesuffix(".part").removesuffix(".mirror")
        with (
            open(self.part, "ab" if start else "wb") as file,
            contextlib.closing(_Progress(name, start, total, self.quiet)) as progress,
        ):
            done = start
            for piece in response.iter_content(PIECE):
                if not done and _WEB_PAGE.match(piece):
                    raise self._web_page()
                done += len(piece)
                if self.size is not None and done > self.size:
                    self.part.unlink()
                    raise DownloadError(
                        f"{self.url}: the server sends more than the {self.size:,} bytes expected; "
                        f"it is another file: look on its publisher's page, {BY_HAND}"
                    )
                file.write(piece)
                progress.update(done)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done < total:
            raise BrokenOff(f"the server sent {done:,} of {total:,} bytes")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: requests.RequestException) -> str:
    """What went wrong on the way, in a few words."""
    import requests

    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "the server cannot be reached in time"
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in str(error):
        return "the server has stopped sending"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "the server cannot be reached; is there a network?"
    return str(error)


class _Progress:
    """A bar on a terminal; elsewhere a line for each quarter of a large file."""

    def __init__(self, name: str, start: int, total: int | None, quiet: bool) -> None:
        self.name, self.total, self.quarter, self.bar = name, total, 4 * start // (total or 1), None
        self.lines = not quiet and total is not None and total >= 10e6
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                desc=name, initial=start, total=total, unit="B", unit_scale=True, leave=False
            )

    def update(self, done: int) -> None:
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif self.lines and 4 * done // self.total > self.quarter:
            self.quarter = 4 * done // self.total
            say(f"{self.name}: {25 * self.quarter} % of {megabytes(self.total)}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
