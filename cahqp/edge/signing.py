"""Ed25519 signatures of manifests. `cryptography` is imported only where a key is at hand."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cahqp.errors import ConfigError, WeightsError
from cahqp.files import atomic_write, write_json

SIGNATURE = "package.sig"
PRIVATE, PUBLIC = "private.pem", "public.pem"


def keygen(output: Path) -> None:
    """Make a pair of Ed25519 keys: `private.pem` signs packages where they are exported, `public.pem` checks them.

    Args:
        output: Directory to make; never overwritten.
    """
    if output.exists() and any(output.iterdir()):
        message = f"{output} is not empty, and a key is never overwritten. Choose another --output."
        raise ConfigError(message)
    ed25519, serialization = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with atomic_write(output / PRIVATE, "wb") as file:
        file.write(secret)
    (output / PRIVATE).chmod(0o600)
    with atomic_write(output / PUBLIC, "wb") as file:
        file.write(_pem(private.public_key()))
    print(
        f"Keep {output / PRIVATE} to yourself; give {output / PUBLIC} to every device ({fingerprint(output / PUBLIC)})."
    )


def sign(directory: Path, data: bytes, key: Path) -> str:
    """Write `package.sig` over the manifest's bytes and return the key's fingerprint.

    Raises:
        ConfigError: The key cannot be read or is no Ed25519 key.
    """
    private = _private(key)
    print_of_key = _fingerprint(private.public_key())
    signature = base64.b64encode(private.sign(data)).decode()
    write_json(directory / SIGNATURE, {"algorithm": "ed25519", "key": print_of_key, "signature": signature})
    return print_of_key


def check_signature(directory: Path, data: bytes, trusted: Path) -> str:
    """Return the fingerprint of a trusted key with which the manifest's bytes are signed.

    Raises:
        ConfigError: The key cannot be read or is no Ed25519 key.
        WeightsError: There is no signature, or it is not that key's over these bytes.
    """
    from cryptography.exceptions import InvalidSignature

    public, wanted = _public(trusted), fingerprint(trusted)
    path = directory / SIGNATURE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        key, signature = str(said["key"]), base64.b64decode(said["signature"], validate=True)
    except FileNotFoundError as error:
        message = f"{directory} is not signed, but --trusted asks for {wanted}. Export it with --key."
        raise WeightsError(message) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} is no readable signature ({error}): it was changed. Restore a copy."
        raise WeightsError(message) from error
    if key != wanted:
        message = f"{directory} is signed with key {key}, not with the trusted {wanted}. Refuse it, or name its key."
        raise WeightsError(message)
    try:
        public.verify(signature, data)
    except InvalidSignature as error:
        message = f"The signature of {directory} does not fit its manifest: one of them was changed. Restore a copy."
        raise WeightsError(message) from error
    return wanted


def fingerprint(public: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 over a public key.

    Raises:
        ConfigError: The key cannot be read or is no Ed25519 key.
    """
    return _fingerprint(_public(public))


def fingerprint_of_private(key: Path) -> str:
    """Return the fingerprint of a private key's public half.

    Raises:
        ConfigError: The key cannot be read or is no Ed25519 key.
    """
    return _fingerprint(_private(key).public_key())


def _private(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    return _load(path, lambda text: serialization.load_pem_private_key(text, None), ed25519.Ed25519PrivateKey)


def _public(path: Path) -> Any:
    ed25519, serialization = _cryptography()
    return _load(path, serialization.load_pem_public_key, ed25519.Ed25519PublicKey)


def _load(path: Path, read: Any, kind: type) -> Any:
    try:
        key = read(Path(path).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        message = f"{path} is no readable {kind.__name__} in PEM ({error}). `cahqp keygen` makes a pair."
        raise ConfigError(message) from error
    if not isinstance(key, kind):
        message = f"{path} holds a {type(key).__name__}, not an {kind.__name__}. `cahqp keygen` makes a pair."
        raise ConfigError(message)
    return key


def _fingerprint(public: Any) -> str:
    _, serialization = _cryptography()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _pem(public: Any) -> bytes:
    _, serialization = _cryptography()
    pem: bytes = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        message = "Signatures need the package cryptography: pip install 'cahqp[edge]'."
        raise ConfigError(message) from error
    return ed25519, serialization
