"""Upload of versions to any fsspec URL, and to W&B as artifacts."""

from __future__ import annotations

import hashlib
from typing import Any

from cahqp.edge.pointer import RUNNING, VERSION, VERSIONS
from cahqp.errors import CahqpError, ConfigError, RunError
from cahqp.files import redact_text, redact_url
from cahqp.registry.registry import Registry


def push_files(registry: Registry, name: str, url: str) -> None:
    """Copy a version below a URL, its manifest last, and then the pointer if it is the running version.

    A reader that follows `running.json` there finds a complete version at any moment.

    Args:
        registry: Registry with the version.
        name: Name of the version, which must be verified.
        url: Destination, such as `s3://bucket/fleet`.

    Raises:
        ConfigError: fsspec or the file system of the URL is not installed.
        RunError: The destination cannot be reached or written, or a copy differs.
    """
    system, root = _file_system(url)
    directory = registry.versions.root / name
    others = sorted(p for p in directory.iterdir() if p.name != VERSION)
    try:
        for path in [*others, directory / VERSION]:
            _put(system, f"{root}/{VERSIONS}/{name}/{path.name}", path.read_bytes())
        now = registry.pointer
        if now is not None and now.version == name:
            _put(system, f"{root}/{RUNNING}", (registry.root / RUNNING).read_bytes())
    except CahqpError:
        raise
    except Exception as error:  # each store raises its own errors
        reason = redact_text(error, url)
        message = (
            f"{redact_url(url)} cannot be written ({reason}). Check the address and your credentials, then rerun the "
            "command."
        )
        raise RunError(message) from error


def push_artifact(registry: Registry, name: str, project: str) -> None:
    """Log a version as an artifact of type `edge-package` in a W&B project.

    Args:
        registry: Registry with the version.
        name: Name of the version, which must be verified.
        project: W&B project.
    """
    import wandb

    manifest = registry.versions.read(name)
    with wandb.init(project=project, job_type="promote") as run:
        artifact = wandb.Artifact(registry.root.resolve().name, type="edge-package", metadata=manifest)
        artifact.add_dir(str(registry.versions.root / name))
        run.log_artifact(artifact, aliases=[name])


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = redact_text(error, url)
        message = f"{redact_url(url)} cannot be opened ({reason}). Install the fsspec driver, such as s3fs for s3://."
        raise ConfigError(message) from error
    except Exception as error:  # some stores connect here, and each raises its own errors
        reason = redact_text(error, url)
        message = (
            f"{redact_url(url)} cannot be reached ({reason}). Check the network, the address and your credentials."
        )
        raise RunError(message) from error
    return system, str(root).rstrip("/")


def _put(system: Any, path: str, data: bytes) -> None:
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    protocols = (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
    if "file" in protocols:
        # An object appears complete in a store; a file in a directory is visible while it is written.
        system.pipe_file(f"{path}.part", data)
        system.mv(f"{path}.part", path)
    else:
        system.pipe_file(path, data)
    if hashlib.sha256(system.cat_file(path)).digest() != hashlib.sha256(data).digest():
        message = f"The copy at {path} differs from the original. Rerun the same command."
        raise RunError(message)
