"""A sampler as a folder with a model card, on disk or on the Hugging Face hub."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentfit.arguments import check_flag, check_path, check_text, told
from latentfit.errors import FileFormatError, OptionError
from latentfit.loading import load_sampler
from latentfit.persistence import atomic_path, write_tensors
from latentfit.sampler import LatentSampler

__all__ = ["CARD", "FILE", "from_pretrained", "model_card", "push_to_hub", "save_pretrained"]

FILE, CARD = "sampler.safetensors", "README.md"
# The hub's own rule, so that what can be none is told before it is asked for.
_PART = r"\w(?:[\w.-]*\w)?"
_REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}", re.ASCII)


def save_pretrained(sampler: LatentSampler, directory: str | os.PathLike[str], **card: Any) -> Path:
    """Write a sampler and its model card to a folder; see :meth:`LatentSampler.save_pretrained`."""
    folder = check_path("directory", directory, "a folder")
    text = _card_of(sampler, card)
    folder.mkdir(parents=True, exist_ok=True)
    # The hub's cache is all links, to what other revisions share.
    write_tensors(folder / FILE, *sampler._content(), follow=False)
    if _told(card) or not (folder / CARD).exists():  # what somebody has written stays
        with atomic_path(folder / CARD, follow=False) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    **loading: Any,
) -> LatentSampler:
    """Load from a folder or a repository; see :meth:`LatentSampler.from_pretrained`."""
    folder = check_path("source", source, "a folder, or as a repository's name 'user/name'")
    _check_access(revision, token)
    if cache_dir is not None:
        cache_dir = check_path("cache_dir", cache_dir, "a folder or None")
    check_flag("local_files_only", local_files_only)
    if folder.is_dir():
        if not (folder / FILE).is_file():
            raise FileFormatError(
                f"Expected a folder with {FILE!r}, as save_pretrained writes it; {str(source)!r} has none."
            )
        return load_sampler(folder / FILE, **loading)
    name = str(source)
    if not _REPOSITORY.fullmatch(name) or isinstance(source, os.PathLike):
        found = "there is no such folder, and no repository can have that name"
        if folder.exists():
            found = "that is a file: load_sampler loads it"
        raise FileNotFoundError(
            f"Expected a folder, or a repository's name such as 'user/name'; got {name!r}; {found}."
        )
    path = _hub().hf_hub_download(
        name,
        FILE,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    return load_sampler(path, **loading)


def push_to_hub(
    sampler: LatentSampler,
    repo_id: str,
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    commit_message: str,
    **card: Any,
) -> str:
    """Upload to the hub; see :meth:`LatentSampler.push_to_hub`."""
    import tempfile

    check_text("repo_id", repo_id, "a repository's name 'user/name'")
    check_flag("private", private, optional=True)
    _check_access(revision, token)
    check_text("commit_message", commit_message)
    hub = _hub()
    text = _card_of(sampler, card)  # what is wrong with it is told before anything is sent
    api = hub.HfApi(token=token)
    made = api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(made.repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sampler.save(Path(folder) / FILE)
        if _told(card) or not api.file_exists(made.repo_id, CARD, revision=revision):
            Path(folder, CARD).write_text(text, encoding="utf-8")
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
        )
    return str(commit.commit_url)


def model_card(
    sampler: LatentSampler,
    *,
    encoder: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Write a model card in Markdown: encoder, data, metrics, licence, and how to use it.

    Raises:
        OptionError: An argument that does not fit.
    """
    texts: dict[str, Any] = {"encoder": encoder, "dataset": dataset, "license": license}
    for name, value in texts.items():
        check_text(name, value, optional=True)
    given: Any = metrics if metrics is not None else {}
    if not isinstance(given, Mapping):
        raise OptionError(f"Expected metrics as a dict of numbers by name; got {told(metrics)}.")
    for name, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(name, str) or not is_number or not math.isfinite(value):
            raise OptionError(
                f"Expected metrics as finite numbers by name; got {told(name)}: {told(value)}."
            )
    info = sampler.info
    described = info.get("encoder") or {}
    front = {"library_name": "latentfit", "tags": ["latentfit", "latent-sampler", sampler.method]}
    front |= {"license": license} if license else {}
    front |= (
        {"datasets": [dataset]} if dataset and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset) else {}
    )
    facts = {
        "encoder": encoder or described.get("class") or "not told",
        "data": f"{dataset or 'not told'}; {info['n']:,} latents, {info['n_validation']:,} held out",
        "latents": f"{'x'.join(map(str, sampler.shape))}, {info['dtype']}",
        "method": sampler.method,
        "options": json.dumps(info["options"]),
        "transform": info["transform"],
        "condition": (info.get("condition") or {}).get("kind", "none"),
        "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        "licence": license or "not told",
    }
    yaml = "".join(f"{name}: {_yaml(value)}\n" for name, value in front.items())
    parts = [f"---\n{yaml}---\n\n# A sampler of latents\n\n"]
    parts.append("| | |\n| --- | --- |\n")
    parts += [f"| {name} | {_cell(str(value))} |\n" for name, value in facts.items()]
    if metrics:
        parts.append("\n## Metrics\n\n| metric | value |\n| --- | ---: |\n")
        parts += [f"| {_cell(name)} | {value:.6g} |\n" for name, value in metrics.items()]
    condition = ", condition=..." if info.get("condition") else ""
    parts.append(
        "\n## Use\n\n```py\nfrom latentfit import LatentSampler\n\n"
        "sampler = LatentSampler.from_pretrained(FOLDER_OR_REPOSITORY, decoder=YOUR_DECODER)\n"
        f"z = sampler.sample(64{condition})\nimages = sampler.generate(64{condition})\n```\n"
    )
    return "".join(parts).encode("utf-8", "replace").decode()  # a file's name may be no Unicode


def _card_of(sampler: LatentSampler, card: Mapping[str, Any]) -> str:
    """Write the card of what a user tells, whose names are looked at first."""
    known = list(model_card.__kwdefaults__ or {})
    for name in card:
        if name not in known:
            raise OptionError(f"Expected {', '.join(known)}, which the card tells; got {name!r}.")
    return model_card(sampler, **card)


def _check_access(revision: Any, token: Any) -> None:
    check_text("revision", revision, "a branch, a tag or a commit", optional=True)
    if not isinstance(token, bool):
        check_text("token", token, "a token, True, False", optional=True)


def _told(card: Mapping[str, Any]) -> bool:
    return any(value is not None for value in card.values())


def _yaml(value: Any) -> str:
    """Write a text, or a list of such, as YAML: JSON, but for its escapes of what lies beyond 16 bits."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^ -~]", lambda found: f"\\U{ord(found[0]):08x}", text)


def _cell(text: str) -> str:
    """Put a text that may be anything into a cell of a Markdown table, as the text that it is."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|~$&#!])", r"\\\1", line)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "The Hugging Face hub needs huggingface_hub: pip install 'latentfit[hub]'."
        ) from error
    return huggingface_hub
