import errno
import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from latentfit.errors import DatasetUnavailableError, FileFormatError
from latentfit_bench import datasets, downloads
from latentfit_bench.datasets import IdxFile, binarize, load_digits, load_mnist, verified_content


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A data set of MNIST's form, with hashes of its own; nothing of the machine's is seen."""
    rng = np.random.default_rng(0)
    contents = {}
    for part, n in (("train", 6), ("t10k", 3)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = idx(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, n, dtype=np.uint8))
    files = tuple(
        IdxFile(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    )
    monkeypatch.setattr(datasets, "MNIST_FILES", files)
    monkeypatch.delenv("LATENTFIT_DATA", raising=False)
    return contents


def fill(folder, contents, *, zipped):
    (folder / "mnist").mkdir(parents=True)
    for name, content in contents.items():
        if zipped:
            (folder / "mnist" / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / "mnist" / name).write_bytes(content)
    return folder


class Mirror:
    """A web server whose answers a test decides: status, body and length, or what a handler does."""

    def __init__(self, answer):
        self.requested = []
        self.closing = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.requested.append(self.path)
                answered = answer(self.path.rpartition("/")[2])
                if callable(answered):
                    with suppress(ConnectionError):  # the client has gone
                        answered(self)
                    return
                status, body, length = answered
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.closing = self.closing
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def mirror():
    started = []

    def start(answer):
        started.append(Mirror(answer))
        return started[-1]

    yield start
    for server in started:
        server.close()


def good(contents):
    def answer(name):
        body = gzip.compress(contents[name.removesuffix(".gz")])
        return 200, body, len(body)

    return answer


def html(_):
    body = b"<!DOCTYPE html><html>Sign in to the hotel's network</html>"
    return 200, body, len(body)


def not_found(_):
    return 404, b"", 0


def cut_off(contents):
    def answer(name):
        body = gzip.compress(contents[name.removesuffix(".gz")])
        return 200, body[: len(body) // 2], len(body) // 2

    return answer


def hangs_up(contents):
    def answer(name):
        body = gzip.compress(contents[name.removesuffix(".gz")])
        return 200, body[: len(body) // 2], len(body)

    return answer


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("by", ["argument", "variable"])
def test_reads_a_folder(tiny, tmp_path, monkeypatch, zipped, by):
    folder = fill(tmp_path / "data", tiny, zipped=zipped)
    if by == "variable":
        monkeypatch.setenv("LATENTFIT_DATA", str(folder))
    data = load_mnist(folder if by == "argument" else None, mirrors=())
    images = np.frombuffer(tiny["train-images-idx3-ubyte"], np.uint8, offset=16)
    np.testing.assert_allclose(data.train_images.numpy().ravel() * 255, images, rtol=0, atol=1e-4)
    assert data.train_images.shape == (6, 784)
    assert data.train_images.dtype == torch.float32
    assert data.test_labels.tolist() == list(tiny["t10k-labels-idx1-ubyte"][8:])
    assert data.image_shape == (28, 28)


def test_the_argument_wins_over_the_variable(tiny, tmp_path, monkeypatch):
    folder = fill(tmp_path / "data", tiny, zipped=True)
    other = tmp_path / "other"
    (other / "mnist").mkdir(parents=True)
    monkeypatch.setenv("LATENTFIT_DATA", str(other))
    assert len(load_mnist(folder).train_images) == 6
    with pytest.raises(DatasetUnavailableError, match="there is neither"):
        load_mnist(None)


def test_a_named_folder_without_the_data_is_an_error_and_not_a_download(tiny, tmp_path):
    with pytest.raises(DatasetUnavailableError, match="--data-dir names its parent"):
        load_mnist(tmp_path / "nothing")


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda raw: raw[:-20], "can't be unpacked"),
        (lambda raw: raw[:2], "can't be unpacked"),
        (lambda _: b"", "got 0 bytes"),
        (lambda _: b"<html>sorry</html>", "looks like a web page"),
        (lambda _: gzip.compress(b"\0" * 10**6), "got more than"),
        (lambda raw: raw[:60] + bytes([raw[60] ^ 1]) + raw[61:], "Expected"),
    ],
    ids=["truncated", "empty-gzip", "empty", "html", "bomb", "flipped-bit"],
)
def test_a_damaged_own_file_is_refused(tiny, tmp_path, damage, expected):
    folder = fill(tmp_path / "data", tiny, zipped=True)
    path = folder / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match=expected) as caught:
        load_mnist(folder)
    assert str(path) in str(caught.value)


def test_a_wrong_hash_shows_both():
    file = IdxFile("labels", 4, hashlib.sha256(b"good").hexdigest())
    with pytest.raises(FileFormatError) as caught:
        verified_content(b"evil", file, source="x")
    assert hashlib.sha256(b"good").hexdigest() in str(caught.value)
    assert hashlib.sha256(b"evil").hexdigest() in str(caught.value)


def test_downloads_once(tiny, tmp_path, mirror):
    server, lines = mirror(good(tiny)), []
    first = load_mnist(cache_dir=tmp_path, mirrors=[server.url], log=lines.append)
    assert len(server.requested) == len(lines) == 4
    second = load_mnist(cache_dir=tmp_path, mirrors=[server.url])
    assert len(server.requested) == 4
    assert torch.equal(first.train_images, second.train_images)
    cached = sorted(path.name for path in (tmp_path / "mnist").iterdir())
    assert cached == sorted(f"{name}.gz" for name in tiny)
    umask = os.umask(0)
    os.umask(umask)
    mode = stat.S_IMODE((tmp_path / "mnist" / cached[0]).stat().st_mode)
    assert mode == 0o666 & ~umask


@pytest.mark.parametrize("bad", [html, not_found, cut_off, hangs_up])
def test_a_bad_mirror_is_passed_over(tiny, tmp_path, mirror, bad):
    first = mirror(bad(tiny) if bad in (cut_off, hangs_up) else bad)
    second = mirror(good(tiny))
    data = load_mnist(cache_dir=tmp_path, mirrors=[first.url, second.url])
    assert len(data.train_images) == 6
    assert len(first.requested) == len(second.requested) == 4


@pytest.mark.parametrize("bad", [html, not_found, cut_off, hangs_up])
def test_bad_mirrors_only_leave_nothing_behind(tiny, tmp_path, mirror, bad):
    server = mirror(bad(tiny) if bad in (cut_off, hangs_up) else bad)
    with pytest.raises(DatasetUnavailableError, match=server.url):
        load_mnist(cache_dir=tmp_path, mirrors=[server.url])
    assert list(tmp_path.rglob("*")) == []


def test_a_damaged_cache_is_mended(tiny, tmp_path, mirror):
    fill(tmp_path, tiny, zipped=False)
    damaged = tmp_path / "mnist" / "train-labels-idx1-ubyte"
    damaged.write_bytes(b"\0" * 14)
    server = mirror(good(tiny))
    for _ in range(2):
        load_mnist(cache_dir=tmp_path, mirrors=[server.url])
    assert server.requested == ["/mnist/train-labels-idx1-ubyte.gz"]


def test_offline_names_the_ways_out(tiny, tmp_path):
    # A port that was free a moment ago and that nobody listens on.
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    with pytest.raises(DatasetUnavailableError) as caught:
        load_mnist(cache_dir=tmp_path, mirrors=[f"http://127.0.0.1:{server.server_port}/"])
    message = str(caught.value)
    assert "\n" not in message
    for way in ("--data-dir", "LATENTFIT_DATA", "latentfit bench digits"):
        assert way in message


def says(status):
    return lambda _: (status, b"not now", 7)


def flipped(contents):
    def answer(name):
        content = bytearray(contents[name.removesuffix(".gz")])
        content[-1] ^= 1
        body = gzip.compress(bytes(content))
        return 200, body, len(body)

    return answer


def redirects(target):
    """Send a client elsewhere; `{name}` and `{own}` stand for the file and the server's own address."""

    def go(handler):
        name = handler.path.rpartition("/")[2]
        own = f"http://127.0.0.1:{handler.server.server_port}/mnist/"
        handler.send_response(302)
        handler.send_header("Location", target.format(name=name, own=own))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return lambda _: go


def begins(handler, *headers):
    handler.send_response(200)
    for header in headers:
        handler.send_header(*header)
    handler.end_headers()


def never_answers(_):
    return lambda handler: handler.server.closing.wait()


def drips(_):
    def go(handler):
        begins(handler, ("Content-Length", "100"))
        while not handler.server.closing.wait(0.05):
            handler.wfile.write(b"\x1f")

    return go


def never_ends(_):
    def go(handler):
        begins(handler)
        while not handler.server.closing.is_set():
            handler.wfile.write(b"\0" * 65536)

    return go


def packed_bomb(_):
    """Zeros that the transport unpacks: a gzip of 10 MB, sent again and again."""

    def go(handler):
        begins(handler, ("Content-Encoding", "gzip"))
        packer = zlib.compressobj(wbits=31)
        while not handler.server.closing.is_set():
            handler.wfile.write(packer.compress(b"\0" * 10**7))

    return go


def bomb(_):
    body = gzip.compress(b"\0" * 10**6)
    return 200, body, len(body)


def talks_nonsense(_):
    return lambda handler: handler.wfile.write(b"\0\xff" * 50 + b"\r\n\r\n")


MISBEHAVIOUR = {
    "wrong-checksum": (flipped, "with SHA-256"),
    "cut-off": (cut_off, "can't be unpacked"),
    "hangs-up": (hangs_up, "cut off, "),
    "web-page": (html, "looks like a web page"),
    "404": (says(404), "404 Not Found"),
    "403": (says(403), "403 Forbidden"),
    "500": (says(500), "500 Internal Server Error"),
    "never-answers": (never_answers, "ReadTimeout"),
    "drips": (drips, "Expected it within 1 s; the server was slower"),
    "never-ends": (never_ends, "Expected at most"),
    "bomb": (bomb, "got more than"),
    "packed-bomb": (packed_bomb, "Expected at most"),
    "nonsense": (talks_nonsense, "ConnectionError"),
    "redirect-loop": (redirects("{own}{name}"), "Exceeded 30 redirects"),
    "redirect-to-a-file": (None, "No connection adapters"),
    "redirect-to-ftp": (redirects("ftp://127.0.0.1/{name}"), "No connection adapters"),
    "redirect-to-data": (redirects("data:,x"), "No connection adapters"),
}


@pytest.mark.parametrize("case", MISBEHAVIOUR)
def test_whatever_a_server_does_is_told_in_time_and_nothing_is_kept(
    tiny, tmp_path, mirror, monkeypatch, case
):
    bad, told = MISBEHAVIOUR[case]
    if case == "redirect-to-a-file":  # where the right data would be
        own = fill(tmp_path / "own", tiny, zipped=True)
        bad = redirects(f"file://{own}/mnist/{{name}}")
    monkeypatch.setattr(downloads, "WAIT_SECONDS", 0.3 if case == "never-answers" else 20)
    monkeypatch.setattr(downloads, "MOST_SECONDS", 1 if case == "drips" else 60)
    server = mirror(bad(tiny) if bad in (flipped, cut_off, hangs_up) else bad)
    began = time.monotonic()
    with pytest.raises(DatasetUnavailableError) as caught:
        load_mnist(cache_dir=tmp_path / "cache", mirrors=[server.url])
    assert time.monotonic() - began < 10
    message = str(caught.value)
    assert message.startswith("Expected to find or download train-images-idx3-ubyte of MNIST; got ")
    assert f"{server.url}train-images-idx3-ubyte.gz: " in message
    assert told in message
    assert "--data-dir" in message
    assert "\n" not in message
    assert not (tmp_path / "cache").exists()


def test_a_redirect_to_another_server_is_followed(tiny, tmp_path, mirror):
    second = mirror(good(tiny))
    first = mirror(redirects(f"{second.url}{{name}}"))
    assert len(load_mnist(cache_dir=tmp_path, mirrors=[first.url]).train_images) == 6
    assert len(first.requested) == len(second.requested) == 4


def test_data_that_the_transport_unpacks_is_the_data(tiny, tmp_path, mirror):
    def answer(name):
        def go(handler):
            body = gzip.compress(tiny[name.removesuffix(".gz")])
            begins(handler, ("Content-Encoding", "gzip"), ("Content-Length", str(len(body))))
            handler.wfile.write(body)

        return go

    server = mirror(answer)
    for _ in range(2):
        assert len(load_mnist(cache_dir=tmp_path, mirrors=[server.url]).train_images) == 6
    assert len(server.requested) == 4


def a_file_as_cache(cache, _):
    cache.write_bytes(b"mine")


def a_file_as_folder(cache, _):
    cache.mkdir()
    (cache / "mnist").write_bytes(b"mine")


def a_link_to_nowhere(cache, _):
    cache.mkdir()
    (cache / "mnist").symlink_to(cache / "nowhere" / "else")


def a_folder_as_file(cache, _):
    (cache / "mnist" / "train-images-idx3-ubyte.gz").mkdir(parents=True)


def full(cache, monkeypatch):
    def write(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(datasets, "write_atomically", write)


@pytest.mark.parametrize(
    "spoil, told",
    [
        (a_file_as_cache, "Not a directory"),
        (a_file_as_folder, "File exists"),
        (a_link_to_nowhere, "File exists"),
        (a_folder_as_file, "Is a directory"),
        (full, "No space left on device"),
    ],
)
def test_a_cache_that_takes_no_file_is_told(tiny, tmp_path, mirror, monkeypatch, spoil, told):
    cache = tmp_path / "cache"
    spoil(cache, monkeypatch)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    server = mirror(good(tiny))
    with pytest.raises(DatasetUnavailableError) as caught:
        load_mnist(cache_dir=cache, mirrors=[server.url])
    message = str(caught.value)
    assert f"Expected a cache that can be written to; got {cache / 'mnist'}: {told}" in message
    assert "XDG_CACHE_HOME" in message
    assert "--data-dir" in message
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_a_file_that_cannot_be_read_is_told_or_fetched_again(tiny, tmp_path, mirror, monkeypatch):
    folder = fill(tmp_path / "data", tiny, zipped=True)
    cannot = folder / "mnist" / "t10k-labels-idx1-ubyte.gz"
    opened = type(cannot).open

    def open_(path, *arguments):
        if path == cannot:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(type(cannot), "open", open_)
    with pytest.raises(DatasetUnavailableError, match="can be read; .*Permission denied"):
        load_mnist(folder)
    server, lines = mirror(good(tiny)), []
    load_mnist(cache_dir=folder, mirrors=[server.url], log=lines.append)
    assert server.requested == ["/mnist/t10k-labels-idx1-ubyte.gz"]
    assert "can't be read" in lines[0]


def in_another_process(contents, cache, url):
    """Start a process that loads the data set and prints a hash of its pixels."""
    files = [[n, len(c), hashlib.sha256(c).hexdigest()] for n, c in contents.items()]
    code = (
        "import hashlib\n"
        "from latentfit_bench import datasets\n"
        f"datasets.MNIST_FILES = tuple(datasets.IdxFile(*file) for file in {json.dumps(files)})\n"
        f"data = datasets.load_mnist(cache_dir={str(cache)!r}, mirrors=[{url!r}])\n"
        "print(hashlib.sha256(data.train_images.numpy().tobytes()).hexdigest())\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_that_download_at_once_leave_one_valid_cache(tiny, tmp_path, mirror):
    together = threading.Barrier(2, timeout=60)

    def answer(name):
        together.wait()
        return good(tiny)(name)

    server = mirror(answer)
    with in_another_process(tiny, tmp_path, server.url) as other:
        data = load_mnist(cache_dir=tmp_path, mirrors=[server.url])
        digest = other.stdout.read().strip()
    assert other.returncode == 0
    assert digest == hashlib.sha256(data.train_images.numpy().tobytes()).hexdigest()
    assert len(server.requested) == 8
    cached = {path.name: path.read_bytes() for path in (tmp_path / "mnist").iterdir()}
    assert {name: gzip.decompress(content) for name, content in cached.items()} == {
        f"{name}.gz": content for name, content in tiny.items()
    }


def test_a_download_that_was_killed_blocks_nobody(tiny, tmp_path, mirror):
    asked = threading.Event()

    def answer(name):
        asked.set()
        return drips(name)

    slow, server = mirror(answer), mirror(good(tiny))
    with in_another_process(tiny, tmp_path, slow.url) as other:
        assert asked.wait(60)
        other.kill()
    assert len(load_mnist(cache_dir=tmp_path, mirrors=[server.url]).train_images) == 6
    assert len(list((tmp_path / "mnist").iterdir())) == 4


def test_threshold_is_at_one_half():
    images = torch.tensor([0.0, 0.49, 0.5, 1.0])
    assert binarize(images, "threshold").tolist() == [0, 0, 1, 1]


def test_bernoulli_draws_with_the_pixels_probability():
    images = torch.tensor([0.0, 0.3, 1.0]).expand(20_000, 3)
    before = torch.random.get_rng_state()
    drawn = binarize(images, "bernoulli", torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    means = drawn.mean(0)
    assert means[0] == 0
    assert means[2] == 1
    # Five standard deviations of the mean.
    assert abs(means[1] - 0.3) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="generator"):
        binarize(images, "bernoulli")


def test_digits_are_split_alike_each_time_and_stratified():
    first, second = load_digits(), load_digits()
    assert torch.equal(first.test_images, second.test_images)
    assert len(first.train_images) + len(first.test_images) == 1797
    assert first.train_images.min() == 0
    assert first.train_images.max() == 1
    shares = first.test_labels.bincount() / 500
    assert (shares - first.train_labels.bincount() / 1297).abs().max() < 0.005


@pytest.mark.mnist
def test_the_real_mnist(mnist):
    assert mnist.train_images.shape == (60_000, 784)
    assert mnist.test_images.shape == (10_000, 784)
    assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # The published mean of MNIST's training pixels.
    assert mnist.train_images.mean().item() == pytest.approx(0.1307, abs=1e-4)


def test_a_variable_that_names_no_folder_is_an_error_and_not_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTFIT_DATA", str(tmp_path / "nothing"))
    with pytest.raises(DatasetUnavailableError, match="LATENTFIT_DATA to name a folder"):
        load_mnist(None)
