"""The benchmarks' data: MNIST (found or downloaded, always verified) and scikit-learn's digits."""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import DatasetUnavailableError, FileFormatError
from latentfit_bench.downloads import fetch, reason
from latentfit_bench.files import write_atomically
from latentfit_bench.idx import parse_idx

DATA_VARIABLE = "LATENTFIT_DATA"
_WAYS_OUT = (
    f"Pass --data-dir DIR or set {DATA_VARIABLE}=DIR, where DIR/mnist holds the four IDX files, or run "
    "`latentfit bench digits`, which needs no download."
)
Binarize = Literal["threshold", "bernoulli"]


@dataclass(frozen=True)
class IdxFile:
    """One published IDX file: its name, and its uncompressed content's size and SHA-256."""

    name: str
    size: int
    sha256: str


MNIST_FILES = (
    IdxFile(
        "train-images-idx3-ubyte",
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte",
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


@dataclass(frozen=True)
class ImageData:
    """A data set of grey images, in memory.

    Attributes:
        name: The task's name.
        train_images: (N, pixels) float32 in [0, 1].
        train_labels: (N,) int64.
        test_images: (M, pixels) float32 in [0, 1].
        test_labels: (M,) int64.
        image_shape: (height, width) in pixels.
        sha256: What the data was verified by: content hashes by file name.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    image_shape: tuple[int, int]
    sha256: dict[str, str] = field(default_factory=dict)


def binarize(images: Tensor, how: Binarize, generator: torch.Generator | None = None) -> Tensor:
    """Turn grey images into images of zeros and ones.

    Args:
        images: Any shape, values in [0, 1].
        how: "threshold" (one where the value is at least one half) or "bernoulli" (one with a
            probability equal to the value).
        generator: Where "bernoulli" draws from; required by it.

    Returns:
        A new tensor like `images`.
    """
    if how == "threshold":
        return (images >= 0.5).to(images.dtype)
    if generator is None:
        raise ValueError("Expected a generator for binarize='bernoulli'; got None.")
    return torch.bernoulli(images, generator=generator)


def load_digits() -> ImageData:
    """Load scikit-learn's 1,797 8x8 digits, split 1,297 to 500, stratified, always alike."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    bunch = sklearn_digits()
    images = (bunch.data / 16).astype(np.float32)
    train, test = train_test_split(
        np.arange(len(images)), test_size=500, stratify=bunch.target, random_state=0
    )
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    pixels = torch.from_numpy(images)
    digest = hashlib.sha256(bunch.data.astype(np.uint8).tobytes()).hexdigest()
    return ImageData(
        "digits",
        pixels[train],
        labels[train],
        pixels[test],
        labels[test],
        (8, 8),
        {"sklearn.datasets.load_digits": digest},
    )


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    mirrors: Sequence[str] = MNIST_MIRRORS,
    log: Callable[[str], None] | None = None,
) -> ImageData:
    """Load MNIST from a folder, the cache or the network; the content is always verified.

    Args:
        data_dir: A folder with a sub-folder `mnist/` that holds the four IDX files, gzipped or not.
            None means the folder in the environment variable `LATENTFIT_DATA` if it has such a
            sub-folder, else the user's cache, else a download into that cache.
        cache_dir: The cache, by default the platform's.
        mirrors: URLs that the gzipped files' names are appended to, tried in order.
        log: Told, in one line each, about downloads.

    Raises:
        DatasetUnavailableError: If files are missing and can't be downloaded.
        FileFormatError: If a file in the user's own folder is not the published one.
    """
    folder = _user_folder(data_dir)
    if folder is not None:
        contents = [_read_own(folder, file) for file in MNIST_FILES]
    else:
        cache = Path(cache_dir) if cache_dir is not None else _cache_folder()
        contents = [_read_cached(cache / "mnist", file, mirrors, log) for file in MNIST_FILES]
    arrays = [
        parse_idx(content, name=file.name)
        for content, file in zip(contents, MNIST_FILES, strict=True)
    ]
    train_images, train_labels, test_images, test_labels = arrays
    return ImageData(
        "mnist",
        torch.from_numpy(train_images.reshape(len(train_images), -1)).float().div_(255),
        torch.from_numpy(train_labels).long(),
        torch.from_numpy(test_images.reshape(len(test_images), -1)).float().div_(255),
        torch.from_numpy(test_labels).long(),
        (28, 28),
        {file.name: file.sha256 for file in MNIST_FILES},
    )


def verified_content(raw: bytes, file: IdxFile, *, source: str) -> bytes:
    """Return the uncompressed content of `raw` (gzipped or not) if it is the published one.

    Raises:
        FileFormatError: If it is truncated, not the file at all, or differs.
    """
    if raw[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
                # One byte more than the file has: enough to see that it is another one, and no
                # more memory than that for a file that unpacks to gigabytes.
                content = stream.read(file.size + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise FileFormatError(
                f"Expected {source} to be a whole gzip file; got {len(raw)} bytes that can't be "
                f"unpacked ({error}). It is truncated or damaged: fetch it again."
            ) from error
    else:
        content = raw
    got = hashlib.sha256(content).hexdigest()
    if got == file.sha256:
        return content
    start = content[:256].lstrip().lower()
    page = " It looks like a web page, not data." if start.startswith((b"<!", b"<html")) else ""
    length = f"more than {file.size}" if len(content) > file.size else f"{len(content)}"
    raise FileFormatError(
        f"Expected {source} to hold {file.name}, {file.size} bytes with SHA-256 {file.sha256}; "
        f"got {length} bytes with SHA-256 {got}.{page} Delete it and fetch it again."
    )


def _user_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    if data_dir is not None:
        folder = Path(data_dir) / "mnist"
        if not folder.is_dir():
            raise DatasetUnavailableError(
                f"Expected a folder {folder} (--data-dir names its parent) with "
                f"{', '.join(file.name for file in MNIST_FILES)}, gzipped or not; there is none."
            )
        return folder
    if variable := os.environ.get(DATA_VARIABLE):
        if not Path(variable).is_dir():
            raise DatasetUnavailableError(
                f"Expected {DATA_VARIABLE} to name a folder; there is no {variable!r}. Unset it to use the "
                "cache."
            )
        folder = Path(variable) / "mnist"
        if folder.is_dir():
            return folder
    return None


def _cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("latentfit", appauthor=False))


def _find(folder: Path, file: IdxFile) -> Path | None:
    candidates = (folder / file.name, folder / f"{file.name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _read_own(folder: Path, file: IdxFile) -> bytes:
    path = _find(folder, file)
    if path is None:
        raise DatasetUnavailableError(
            f"Expected {file.name} or {file.name}.gz in {folder}; there is neither. Put it there, "
            f"or drop --data-dir and {DATA_VARIABLE} to have it downloaded."
        )
    return _read(path, file)


def _read(path: Path, file: IdxFile) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_most(file))
    except OSError as error:
        raise DatasetUnavailableError(
            f"Expected a file that can be read; {path}: {error.strerror}. {_WAYS_OUT}"
        ) from error
    return verified_content(raw, file, source=str(path))


def _read_cached(
    folder: Path, file: IdxFile, mirrors: Sequence[str], log: Callable[[str], None] | None
) -> bytes:
    path = _find(folder, file)
    if path is not None:
        try:
            return _read(path, file)
        except (DatasetUnavailableError, FileFormatError):
            # The cache is ours: what is damaged there is simply fetched again.
            if log:
                log(f"{path} is damaged, or can't be read; fetching it again")
    return _download(folder, file, mirrors, log)


def _download(
    folder: Path, file: IdxFile, mirrors: Sequence[str], log: Callable[[str], None] | None
) -> bytes:
    reasons = []
    for mirror in mirrors:
        url = f"{mirror}{file.name}.gz"
        if log:
            log(f"downloading {url}")
        try:
            raw = fetch(url, _most(file))
            content = verified_content(raw, file, source=url)
        except (OSError, FileFormatError) as error:  # what requests raise are OSErrors too
            reasons.append(f"{url}: {reason(error)}")
            continue
        _keep(folder, file, raw)
        return content
    raise DatasetUnavailableError(
        f"Expected to find or download {file.name} of MNIST; got {'; '.join(reasons)}. {_WAYS_OUT}"
    )


def _most(file: IdxFile) -> int:
    """More bytes than a file, gzipped or not, can have."""
    return file.size + file.size // 1000 + 1024


def _keep(folder: Path, file: IdxFile, raw: bytes) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{file.name}.gz", raw)
        # An uncompressed copy would be found first, so a damaged one must not stay.
        (folder / file.name).unlink(missing_ok=True)
    except OSError as error:
        raise DatasetUnavailableError(
            f"Expected a cache that can be written to; got {folder}: {error.strerror}. Make room for it "
            f"there, or name another by XDG_CACHE_HOME. {_WAYS_OUT}"
        ) from error
