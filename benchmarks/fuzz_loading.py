"""Fuzz the loader under atheris, which looks for inputs that reach new code.

    pip install atheris
    python benchmarks/fuzz_loading.py CORPUS [-max_total_time=600] [-max_len=65536]

The corpus's folder is made and filled with the golden files where it is empty. The input's first byte says
whether what follows is a file, byte for byte, or a header that is put into a good file with the right
digest, so that the fuzzer gets beyond it. Whatever is none of latentfit's own errors ends the run, and the
input is kept. Other options are those of libFuzzer.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["latentfit", "safetensors"]):
    from latentfit import load_sampler
    from latentfit.errors import LatentfitError
    from latentfit.persistence import read_tensors, write_tensors

GOLDEN = sorted((Path(__file__).parents[1] / "tests" / "golden").glob("*.safetensors"))
TENSORS = [read_tensors(file) for file in GOLDEN]
FILE = Path(tempfile.mkdtemp(), "file.safetensors")


def load(data: bytes) -> None:
    """Load one input."""
    if not data:
        return
    kind, content = data[0], data[1:]
    if kind == 0:
        FILE.write_bytes(content)
    else:
        try:
            header = json.loads(content)
            write_tensors(FILE, TENSORS[kind % len(TENSORS)][0], {"info": None} | header)
        except (ValueError, TypeError, RecursionError):  # no header at all
            return
    with suppress(LatentfitError):
        load_sampler(FILE)


def fill(corpus: Path) -> None:
    """Begin with what is good."""
    corpus.mkdir(parents=True, exist_ok=True)
    if any(corpus.iterdir()):
        return
    for number, file in enumerate(GOLDEN):
        (corpus / file.stem).write_bytes(b"\0" + file.read_bytes())
        header = json.dumps(TENSORS[number][1]).encode()
        kind = number or len(GOLDEN)
        (corpus / f"{file.stem}-header").write_bytes(bytes([kind]) + header)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of libraries that are built with an input's numbers
    fill(Path(next(word for word in sys.argv[1:] if not word.startswith("-"))))
    atheris.Setup(sys.argv, load)
    atheris.Fuzz()
