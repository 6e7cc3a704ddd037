"""A download that comes to an end, whatever the server does."""

import io
import re
import threading
from typing import Any

from latentfit.errors import FileFormatError

WAIT_SECONDS = 30.0  # for the next bytes
MOST_SECONDS = 600.0  # in all
_LONGEST = 400  # letters of a reason: a redirect's address may have any number


class _Sink(io.BytesIO):
    """Takes so many bytes, and no more."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.error: BaseException | None = None

    def write(self, chunk: Any) -> int:
        if self.tell() + len(chunk) > self.most:
            raise FileFormatError(f"Expected at most {self.most} bytes; got more.")
        return super().write(chunk)


def fetch(url: str, most: int) -> bytes:
    """Download a small file into memory.

    pooch has a limit for each wait only, which a server that sends a byte now and then never reaches.

    Args:
        url: http or https; redirects are followed to such only.
        most: Bytes that it may have, unpacked if the server sends it packed.

    Raises:
        OSError: No such answer, or not within the time.
        FileFormatError: It has more bytes.
    """
    import pooch

    sink = _Sink(most)
    answers: list[Any] = []  # pooch leaves them open when it fails

    def keep(answer: Any, **_: Any) -> None:
        answers.append(answer)

    hooks = {"response": keep}
    download = pooch.HTTPDownloader(progressbar=False, timeout=WAIT_SECONDS, hooks=hooks)

    def work() -> None:
        try:
            download(url, sink, None)
        except BaseException as error:
            sink.error = error
        finally:
            for answer in answers:
                answer.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(MOST_SECONDS)
    if thread.is_alive():
        sink.close()  # the next bytes that come end the thread
        raise TimeoutError(f"Expected it within {MOST_SECONDS:g} s; the server was slower.")
    if sink.error is not None:
        raise sink.error
    return sink.getvalue()


def reason(error: Exception) -> str:
    """Tell in a few words why a download failed."""
    response = getattr(error, "response", None)
    if response is not None and response.status_code >= 400:
        return f"{response.status_code} {response.reason}"
    line = " ".join(str(error).split())
    cut = re.search(r"IncompleteRead\((.+?)\)", line)
    if cut:
        return f"cut off, {cut[1]}"
    # A connection's error repeats the URL and quotes objects: its class says it all.
    told = isinstance(error, ValueError) or len(line) < 80  # also of an address that is none
    return line[:_LONGEST] if told else type(error).__name__
