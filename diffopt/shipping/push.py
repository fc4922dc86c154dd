"""A folder to a repository of the Hugging Face hub. Every way in which that fails is one line."""

from pathlib import Path
from typing import Any

from diffopt.errors import StoreError

WHERE = "store export: push to the hub"


def check(repository: str) -> None:
    """Raises StoreError for what is no name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as e:
        raise StoreError(f"{WHERE}: is no name of a repository (got {repository!r}); give ORG/NAME: {_first(e)}") from None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def upload(directory: Path, repository: str, *, private: bool) -> str:
    """Upload all files in one commit, into a repository that is made where there is none; the commit's address.

    Raises StoreError without a token, a network, or the right to, and for a public one where `private` is asked.
    """
    from httpx import TransportError
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if constants.HF_HUB_OFFLINE:
        raise _refused("HF_HUB_OFFLINE is set", repository, "unset it")
    if not get_token():
        raise _refused("there is no token", repository, "run `hf auth login`, or set HF_TOKEN to a token that may write")
    api = HfApi()
    disable_progress_bars()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise _refused("is there already, and public", repository, "make it private first, or leave --private out")
        done = api.upload_folder(folder_path=directory, repo_id=made.repo_id, commit_message="Upload by diffopt")
    except HfHubHTTPError as e:
        raise _refused(_said(e), repository, _advice(e)) from None
    except (TransportError, OfflineModeIsEnabled, OSError) as e:
        raise _refused(f"cannot be reached ({_first(e)})", constants.ENDPOINT, "try again when it can") from None
    except ValueError as e:  # what the hub says of the front matter
        raise _refused(
            f"the card is not taken ({_first(e)})", repository, "mend README.md, and give the same command"
        ) from None
    return str(done.commit_url)


def _refused(what: str, got: str, advice: str) -> StoreError:
    return StoreError(f"{WHERE}: {what} (got {got!r}); {advice}; the folder is kept")


def _said(error: Any) -> str:
    status = error.response.status_code if error.response is not None else "no answer"
    return f"the hub refuses it ({status}: {(error.server_message or str(error)).strip().splitlines()[0].rstrip('.')})"


def _advice(error: Any) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return "run `hf auth login`, or set HF_TOKEN to a token that may write"
    if status == 403:
        return "use a token that may write to it, or a repository of your own"
    if status == 404:
        return "check its name, and that your token sees it"
    return "try again later"
