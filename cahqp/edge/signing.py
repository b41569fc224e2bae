"""Ed25519 signatures of package manifests. `cryptography` is imported only when a key is used."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahqp.edge.options import KeygenOptions
from cahqp.errors import ConfigError, WeightsError
from cahqp.files import read_limited, sync_directory, write_json, writing
from cahqp.records import parse_json

SIGNATURE = "package.sig"
_MAX_KEY_BYTES = 1 << 16
_MAX_SIGNATURE_BYTES = 1 << 16
PRIVATE, PUBLIC = "private.pem", "public.pem"


def keygen(options: KeygenOptions) -> None:
    """Make a pair of Ed25519 keys: `private.pem` signs packages where they are exported, `public.pem` checks them.

    Raises:
        ConfigError: The directory is not empty.
    """
    output = options.output
    if output.exists() and any(output.iterdir()):
        message = f"{output} is not empty, and keys are never overwritten. Choose another --output."
        raise ConfigError(message)
    ed25519, serialization = _cryptography()
    private, pem = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    pair = {
        PRIVATE: private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        PUBLIC: private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    }
    _write_pair(output, pair)
    print(
        f"Keep {output / PRIVATE} secret. Copy {output / PUBLIC} to every device "
        f"(fingerprint {_fingerprint(private.public_key())})."
    )


def _write_pair(output: Path, pair: dict[str, bytes]) -> None:
    """Write the files of a pair to a private directory, and rename it: two commands cannot mix their pairs."""
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            work = Path(folder) / "keys"
            work.mkdir(mode=0o755)
            for name, content in pair.items():
                mode = 0o600 if name == PRIVATE else 0o644
                with os.fdopen(os.open(work / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            sync_directory(work)
            try:
                work.rename(output)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                message = f"{output} was filled by another command. Choose another --output."
                raise ConfigError(message) from error
            sync_directory(output.parent)


def sign(directory: Path, data: bytes, key: Path) -> None:
    """Write `package.sig` with a signature over the manifest's bytes.

    Raises:
        ConfigError: The key cannot be read or is not an Ed25519 key.
    """
    write_json(directory / SIGNATURE, {"algorithm": "ed25519", **make_signature(data, key)})


def make_signature(data: bytes, key: Path) -> dict[str, str]:
    """Return the fingerprint of a private key's public half, and the signature of the data in base64.

    Raises:
        ConfigError: The key cannot be read or is not an Ed25519 key.
    """
    private = _private(key)
    signature = base64.b64encode(private.sign(data)).decode()
    return {"key": _fingerprint(private.public_key()), "signature": signature}


def check_signature(directory: Path, data: bytes, trusted: Path) -> str:
    """Check the signature over the manifest's bytes and return the fingerprint of the trusted key.

    Raises:
        ConfigError: The key cannot be read or is not an Ed25519 key.
        WeightsError: The signature is missing, damaged, or belongs to another key or manifest.
    """
    path, expected = directory / SIGNATURE, public_fingerprint(trusted)
    try:
        content = parse_json(read_limited(path, _MAX_SIGNATURE_BYTES))
        given = {name: str(content[name]) for name in ("key", "signature")}
    except FileNotFoundError as error:
        message = f"{directory} is not signed, but --trusted requires key {expected}. Export it with --key."
        raise WeightsError(message) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} is not a readable signature ({error}): it was changed. Restore a copy."
        raise WeightsError(message) from error
    verify_signature(given, data, trusted, directory)
    return expected


def verify_signature(given: Mapping[str, str], data: bytes, trusted: Path, subject: Path) -> None:
    """Check what `make_signature` returned for the same data.

    Args:
        given: Fingerprint of the key, and the signature.
        data: Bytes that were signed.
        trusted: Public key (PEM).
        subject: What the message names.

    Raises:
        ConfigError: The key cannot be read or is not an Ed25519 key.
        WeightsError: The signature is damaged, or belongs to another key or to other data.
    """
    public, remedy = _public(trusted), "Check its origin."
    from cryptography.exceptions import InvalidSignature

    expected = _fingerprint(public)
    if given["key"] != expected:
        message = f"{subject} is signed with key {given['key']}, not with the trusted key {expected}. {remedy}"
        raise WeightsError(message)
    try:
        public.verify(base64.b64decode(given["signature"], validate=True), data)
    except (InvalidSignature, ValueError) as error:
        message = f"The signature of {subject} does not match its content: one of them was changed. Restore a copy."
        raise WeightsError(message) from error


def private_fingerprint(key: Path) -> str:
    """Return the fingerprint of a private key's public half.

    Raises:
        ConfigError: The key cannot be read or is not an Ed25519 key.
    """
    return _fingerprint(_private(key).public_key())


def public_fingerprint(key: Path) -> str:
    """Return the fingerprint of a public key.

    Raises:
        ConfigError: The key cannot be read or is not an Ed25519 key.
    """
    return _fingerprint(_public(key))


def _public(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    return _load(path, serialization.load_pem_public_key, ed25519.Ed25519PublicKey)


def _private(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    return _load(path, lambda text: serialization.load_pem_private_key(text, None), ed25519.Ed25519PrivateKey)


def _load(path: Path, parse: Any, kind: type) -> Any:
    try:
        key = parse(read_limited(path, _MAX_KEY_BYTES))
    except (OSError, ValueError, TypeError) as error:
        message = f"{path} is not a readable {kind.__name__} in PEM ({error}). `cahqp keygen` makes a pair."
        raise ConfigError(message) from error
    if not isinstance(key, kind):
        message = f"{path} contains a {type(key).__name__}, not an {kind.__name__}. `cahqp keygen` makes a pair."
        raise ConfigError(message)
    return key


def _fingerprint(public: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a public key."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        message = "Signatures need the package cryptography: pip install 'cahqp[edge]'."
        raise ConfigError(message) from error
    return ed25519, serialization
