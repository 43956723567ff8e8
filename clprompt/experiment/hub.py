"""Trained models in repositories of the Hugging Face Hub: fetched by their address, uploaded in one commit.

An address is ``hf://user/name`` or ``hf://user/name@revision``, a branch, tag or commit. A repository holds
``model.json`` and ``model.safetensors``, as ``clprompt export --format safetensors`` writes them, and a card.
These two files alone are fetched, into the cache of huggingface_hub, whose business tokens are, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from clprompt.errors import CheckpointError, ClpromptError, ConfigError, HubError
from clprompt.experiment import folder as runfolder
from clprompt.system.documents import read_json

#: What a model is made of.
FILES = ("model.json", "model.safetensors")
CARD = "README.md"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo>[^@]*)(?:@(?P<revision>.+))?")  # a Path keeps one slash of two


class Uploaded(NamedTuple):
    """What became of an upload.

    Attributes:
        url: of the commit.
        kept_card: whether the repository had a card, which stays.
    """

    url: str
    kept_card: bool


def local(place: str | Path) -> Path:
    """The folder of a model: what is no address as it stands, an address as it is in the cache.

    Where the hub cannot be reached, what the cache holds of the revision is taken.

    Raises:
        ConfigError: "hf://" and no repository.
        HubError: it cannot be fetched, or is no model of clprompt.
        CheckpointError: its model.json cannot be read, or names weights that are elsewhere.
    """
    named = _ADDRESS.fullmatch(str(place))
    if named is None:
        return Path(place)
    repo, revision = checked(named["repo"]), named["revision"]
    with _asking(repo, revision):
        folder = Path(_api().snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    for name in FILES:
        if not (folder / name).is_file():
            raise HubError(f"{address(repo, revision)} holds no model of clprompt: it has no {name}")
    backbone = read_json(folder / "model.json", runfolder.UNCOVERED).get("backbone")
    if isinstance(backbone, dict) and (backbone.get("pretrained") or backbone.get("checkpoint")):
        # nobody's model makes a file of this machine be read, or another repository be fetched
        raise CheckpointError(f"{address(repo, revision)}: model.json names a backbone that is elsewhere")
    return folder


def checked(repo: str) -> str:
    """The name of a repository.

    Raises:
        ConfigError: it is not of the form user/name.
    """
    if not _REPOSITORY.fullmatch(repo):
        raise ConfigError(f'a repository is named user/name, got "{repo}"')
    return repo


def upload(
    folder: Path, repo: str, *, message: str, private: bool, revision: str | None, create: bool
) -> Uploaded:
    """Upload a model and its card in one commit; a card that is there stays, its author may have edited it.

    Args:
        folder: holds ``FILES`` and ``CARD``.
        repo: user/name.
        message: of the commit.
        private: whether a repository that is made is private.
        revision: the branch; None for the main one.
        create: whether a repository and a branch that are not there are made.

    Raises:
        HubError: the hub cannot be reached, or refuses; private was asked for, and it is there and public.
    """
    from huggingface_hub import CommitOperationAdd

    api = _api()
    with _asking(repo, revision):
        if create:
            api.create_repo(repo, exist_ok=True, **({"private": True} if private else {}))
        if private and not api.model_info(repo).private:
            raise HubError(f"{address(repo)} is there already, and public; nothing was uploaded")
        if create and revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        kept = api.file_exists(repo, CARD, revision=revision)
        names = [*FILES, *([] if kept else [CARD])]
        files = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
        commit = api.create_commit(repo, files, commit_message=message, revision=revision)
    return Uploaded(str(commit.commit_url), kept)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="clprompt", library_version=version("clprompt"))


@contextmanager
def _asking(repo: str, revision: str | None) -> Iterator[None]:
    """Around calls of huggingface_hub: what it raises is told as one mistake.

    Raises:
        HubError: in place of it.
    """
    from huggingface_hub import utils

    try:
        with _quiet():
            yield
    except ClpromptError:
        raise
    except utils.GatedRepoError as error:
        raise HubError(
            f"{address(repo)}: your account has no access to it yet; ask for it on its page"
        ) from error
    except utils.RepositoryNotFoundError as error:
        raise HubError(
            f"{address(repo)}: there is no such repository, or your token does not open it (hf auth login)"
        ) from error
    except utils.RevisionNotFoundError as error:
        raise HubError(f'{address(repo)} has no revision "{revision}"') from error
    except utils.LocalEntryNotFoundError as error:
        raise HubError(
            f"{address(repo, revision)} cannot be fetched, and the cache holds no copy: "
            f"{_reason(error.__cause__ or error)}"
        ) from error
    except utils.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            reason = "there is no token, or it does not allow this (hf auth login)"
        else:
            reason = _reason(error)
        raise HubError(f"{address(repo, revision)}: {reason}") from error
    except Exception as error:  # whatever its HTTP library raises, which is not the same in all versions
        raise HubError(f"{address(repo, revision)}: {_reason(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of huggingface_hub, as errors say enough, and without its bars outside a terminal."""
    from huggingface_hub import utils

    verbosity, silent = utils.logging.get_verbosity(), utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if not silent:
            utils.enable_progress_bars()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def address(repo: str, revision: str | None = None) -> str:
    """The address of a model, hf://user/name or hf://user/name@revision."""
    return f"hf://{repo}" + (f"@{revision}" if revision else "")
