"""Files: atomic writing, and a sampler as one safetensors file with a JSON header.

Nothing in a file is ever run or followed: the header names a method, and only the installed plugin that is
registered under that name is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from latentfit.arguments import check_path, told
from latentfit.errors import DataError, FileFormatError

__all__ = ["CHECKPOINT", "SAMPLER", "atomic_path", "check_target", "read_tensors", "write_tensors"]

FORMAT_VERSION = 1
SAMPLER, CHECKPOINT = "a sampler", "the checkpoint of a fit"  # kinds of files
_REMEDIES = {SAMPLER: "Copy or save it anew.", CHECKPOINT: "Delete it to start anew."}
_KEY = "latentfit"  # in the safetensors metadata
_MOST_HEADER_BYTES = 16 * 2**20
_BLANK = "0" * 64  # stands for the digest while the file is hashed


def check_target(
    path: str | os.PathLike[str], *inputs: str | None, suffixes: Sequence[str] = ()
) -> Path:
    """Tell, before hours of work, that no file can or should be written there.

    Args:
        path: The file to write.
        inputs: Files that are read; writing over one of them would lose it.
        suffixes: What its name may end in, in lower case; anything if there are none.

    Returns:
        The path.

    Raises:
        OptionError: No path.
        DataError: Another suffix, a folder that isn't there, a folder in the file's place, or one of the
            inputs.
    """
    given = check_path("path", path)
    target = given.absolute()
    read = [check_path("path", name).resolve() for name in inputs if name]
    if target.resolve() in read:
        raise DataError(f"Expected another file to write than the input; got {path} for both.")
    if target.is_dir():
        raise DataError(f"Expected the name of a file to write; {path} is a folder.")
    if target.exists() and not target.is_file():
        raise DataError(f"Expected the name of a file to write; {path} is a device or a pipe.")
    if not target.parent.is_dir():
        raise DataError(
            f"Expected a folder to write {path} into; there is no {target.parent}. Make it first."
        )
    if suffixes and given.suffix.lower() not in suffixes:
        raise DataError(
            f"Expected the name of a {', '.join(suffixes)} file to write; got {told(str(path))}."
        )
    return given


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, follow: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside the target; on success it replaces the target, else it is removed.

    The content is flushed to disk first, and the mode is the umask's, so that a reader sees the old file
    or the new one, whole.

    Args:
        path: The target.
        follow: Whether a link that a user names as the target stays a link, and the file it leads to is
            written. One that is found in a folder of ours is replaced: it may lead anywhere.

    Raises:
        OSError: The folder does not exist or can't be written.
    """
    target = Path(os.path.realpath(path)) if follow else Path(path).absolute()
    if not target.is_symlink():
        if target.is_dir():
            raise IsADirectoryError(
                f"Expected a file's path; {str(path)!r} is a folder. Name a file in it."
            )
        # Replacing /dev/null would take it from everyone.
        if target.exists() and not target.is_file():
            raise OSError(f"Expected a file's path; {str(path)!r} is a device, a pipe or a socket.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not target.parent.is_dir():
            raise FileNotFoundError(f"The folder {str(target.parent)!r} does not exist.") from None
        # /proc is one that takes no files; of the temporary one the user knows nothing.
        told = error.strerror
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            told = f"{told}: expected a folder that may be written to; name another one"
        raise OSError(error.errno, told, str(path)) from None
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_tensors(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    header: dict[str, Any],
    *,
    follow: bool = True,
) -> None:
    """Write tensors and a JSON header to a safetensors file, atomically; see :func:`atomic_path`.

    Raises:
        DataError: The header is too long.
        OSError: The file can't be written; what was there before is unchanged.
    """
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}

    def content(digest: str) -> bytes:
        full = {"format_version": FORMAT_VERSION, **header, "sha256": digest}
        text = json.dumps(full, allow_nan=False, sort_keys=True)
        return safetensors.torch.save(plain, metadata={_KEY: text})

    whole = content(hashlib.sha256(content(_BLANK)).hexdigest())
    size = int.from_bytes(whole[:8], "little")
    if size > _MOST_HEADER_BYTES:  # no reader would take it
        raise DataError(
            f"Expected a header of at most {_MOST_HEADER_BYTES:,} bytes, for what a sampler tells of itself; "
            f"got {size:,}. Leave long texts out of it."
        )
    with atomic_path(path, follow=follow) as temporary:
        temporary.write_bytes(whole)


def read_tensors(
    path: str | os.PathLike[str], kind: str = SAMPLER
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote: the tensors, and the header.

    Args:
        path: The file.
        kind: What it should be, ``SAMPLER`` or ``CHECKPOINT``.

    Raises:
        FileFormatError: The file is damaged, of another kind, or of a newer format.
        OSError: It can't be read.
    """
    content = _read(Path(path), kind)
    header = _header(content, str(path), kind)
    found = header.get("kind", SAMPLER)
    if found != kind:
        remedy = " Name another folder for the checkpoint."
        if found == CHECKPOINT:
            remedy = " Go on with fit_latent_sampler(..., checkpoint=)."
        raise FileFormatError(f"{path}: expected {kind}; this is {str(found)!r}.{remedy}")
    expected = str(header.get("sha256"))
    digest = hashlib.sha256(content.replace(expected.encode(), _BLANK.encode(), 1)).hexdigest()
    if digest != expected:
        raise FileFormatError(
            f"{path}: damaged: expected SHA-256 {expected}; got {digest}. {_REMEDIES[kind]}"
        )
    try:
        return safetensors.torch.load(content), header
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileFormatError(
            f"{path}: expected a safetensors file; {error}. {_REMEDIES[kind]}"
        ) from error


def _read(path: Path, kind: str) -> bytes:
    """Read a file, and say what else could be meant where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected the file of {kind}; there is no {str(path)!r} (from {os.getcwd()!r})."
        ) from None
    except OSError:
        if not path.is_dir():
            raise
        raise IsADirectoryError(
            f"Expected the file of {kind}; {str(path)!r} is a folder. What save_pretrained wrote is loaded "
            "by LatentSampler.from_pretrained."
        ) from None


def _header(content: bytes, path: str, kind: str) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(len(content) - 8, _MOST_HEADER_BYTES):
        raise FileFormatError(
            f"{path}: expected a safetensors file; this is none, or it is cut off. {_REMEDIES[kind]}"
        )
    try:
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        text = metadata.get(_KEY)
        header = None if text is None else json.loads(text)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: expected a safetensors file; {error}. {_REMEDIES[kind]}"
        ) from error
    if not isinstance(header, dict):
        raise FileFormatError(
            f"{path}: expected {kind} that latentfit saved; this safetensors file has no {_KEY!r} header."
        )
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"{path}: expected format version {FORMAT_VERSION}; got {version!r}. Upgrade latentfit to read "
            "newer files."
        )
    return header
