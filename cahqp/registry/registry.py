"""Registry of versions with one pointer to the running version. A reader finds exactly one at any moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cahqp.edge.package import Package, read_package
from cahqp.edge.pointer import (
    PREVIOUS,
    RUNNING,
    Pointer,
    check_version,
    read_pointer,
    sign_pointer,
    write_pointer,
)
from cahqp.edge.runtime import Runtime
from cahqp.edge.signing import private_fingerprint
from cahqp.errors import ConfigError, RunError, WeightsError
from cahqp.registry.versions import Versions
from cahqp.runs import locks
from cahqp.runs.evidence import Decision

NONE = "none"


@dataclass(frozen=True)
class PromotionRequest:
    """Reason and provenance of a promotion.

    Attributes:
        decision: Decision of the gate. `None` if a person decides.
        reason: Reason of the person who decides.
        expect: Name of the version that must be running now, `none` for no version. `None` skips the check.
        parents: Versions or hashes that the package was made from. Empty for the running version.
        data: SHA-256 of the data that the package was made from, by name.
    """

    decision: Decision | None = None
    reason: str | None = None
    expect: str | None = None
    parents: Sequence[str] = ()
    data: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """Directory of versions with one pointer.

    Args:
        root: Path of the directory. The first promotion creates it.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.versions = Versions(self.root)

    @property
    def pointer(self) -> Pointer | None:
        """Pointer to the running version; `None` before the first promotion.

        Raises:
            RunError: The pointer is damaged, or missing although a copy exists.
        """
        if not (self.root / RUNNING).exists() and not (self.root / PREVIOUS).exists():
            return None
        return read_pointer(self.root / RUNNING)

    def promote(
        self, package: Path, request: PromotionRequest, trusted: Path | None = None, key: Path | None = None
    ) -> str:
        """Make a package the running version, unless another process was faster, and return the version's name.

        Only the last step, a rename, changes the running version. The call can be repeated after an interruption at
        any step.

        Args:
            package: Directory of the package.
            request: Reason and provenance of the promotion.
            trusted: Ed25519 public key (PEM) that must have signed the package.
            key: Its private key (PEM), which signs the pointer. Required if the pointer is signed.

        Raises:
            ConfigError: The request has neither a decision nor a reason, or the key is missing or another one.
            RunError: Another process holds the lock or was faster, or the registry was changed or cannot be written.
            WeightsError: The package was changed, is signed with another key, has other classes or does not load.
        """
        with self._locked():
            found = read_package(package, trusted)
            now = self.pointer
            self._check_signer(now, found.key, key)
            if now is not None and self._is_running(now, found, trusted):
                self._check_running(now)
                if key is not None and now.signature is None:
                    self._write(now, replace(now, generation=now.generation + 1), key)
                self._keep_copy(now)
                return now.version
            self._check_request(found, request, now)
            self._check_package(found, now)
            Runtime(found)
            self.versions.sweep()
            name = self.versions.add(found.path, found.digest, self._provenance(found, request, now))
            problems = self.versions.problems(name, trusted)
            if problems:
                raise RunError("\n".join(problems))
            self._switch(now, name, found, key)
            return name

    def rollback(self, to: str | None = None, trusted: Path | None = None, key: Path | None = None) -> str:
        """Make an earlier version the running one and return its name. A damaged pointer is replaced.

        Args:
            to: Name of the version. `None` for the version that ran before.
            trusted: Ed25519 public key (PEM) that must have signed the version.
            key: Its private key (PEM), which signs the pointer. Required if the pointer is signed.

        Raises:
            ConfigError: The key is missing or another one.
            RunError: There is no such version, it was changed, or the registry cannot be written.
        """
        with self._locked():
            now, target = self._rollback_target(to)
            self._check_signer(now, None, key)
            problems = self.problems(target, trusted, now)
            if problems:
                message = "\n".join([*problems, "Nothing was changed. Name another version with --to."])
                raise RunError(message)
            before = _versions_before(now, target)
            digest = self.versions.digest(target)
            manifests = {**now.manifests, target: digest}
            new = replace(
                now,
                generation=now.generation + 1,
                version=target,
                manifest=digest,
                before=before,
                manifests=manifests,
            )
            self._write(new, new, key)  # a copy of the pointer left behind would be restored by a later repair
            return target

    def problems(self, name: str, trusted: Path | None, now: Pointer | None) -> list[str]:
        """Return one line for each reason why a version must not run or leave this registry.

        Args:
            name: Name of the version.
            trusted: Ed25519 public key (PEM) that must have signed it. Required if the registry has a key.
            now: Pointer of the registry.
        """
        problems = self.versions.problems(name, trusted)
        if problems or now is None:
            return problems
        if now.key is not None:
            key = None if trusted is None else read_package(self.versions.root / name, trusted).key
            if key != now.key:
                return [
                    f"{self.root} runs only versions signed with key {now.key}. Give that public key with --trusted."
                ]
        if now.manifests and now.manifests.get(name) != self.versions.digest(name):
            return [f"{self.versions.root / name} never ran in {self.root}: it was exchanged. Promote its package."]
        return []

    def verify(self, trusted: Path | None = None) -> list[str]:
        """Return one line for each problem in the registry."""
        problems = [p for name in self.versions.names() for p in self.versions.problems(name, trusted)]
        problems = [*self._copy_problems(), *problems]
        try:
            now = self.pointer
            if now is None:
                return [f"{self.root} has no running version.", *problems]
            check_version(self.versions.root / now.version, now.manifest)
        except RunError as error:
            return [str(error), *problems]
        return problems

    def version_of(self, package: Path) -> str | None:
        """Return the newest version that contains a package; `None` if there is none."""
        digest = read_package(package).digest
        names = [name for name in self.versions.names() if self.versions.read(name).get("package") == digest]
        return names[-1] if names else None

    def collect(self, keep: int) -> list[str]:
        """Remove old versions and the leftovers of killed commands, and return their names.

        Args:
            keep: Number of versions before the running one to keep.
        """
        with self._locked():
            now = self.pointer
            if now is None:
                return self.versions.sweep()
            self._keep_copy(now)
            kept = {now.version, *now.before[len(now.before) - min(keep, len(now.before)) :]}
            kept.add(read_pointer(self.root / PREVIOUS).version)
            removed = [name for name in self.versions.names() if name not in kept]
            for name in removed:
                self.versions.remove(name)
            return [*self.versions.sweep(), *removed]

    def _is_running(self, now: Pointer, package: Package, trusted: Path | None) -> bool:
        """Return whether a package is the running version, with the trusted signature if there is a key."""
        same = self.versions.read(now.version).get("package") == package.digest
        return same and (trusted is None or not self.versions.problems(now.version, trusted))

    def _check_running(self, now: Pointer) -> None:
        check_version(self.versions.root / now.version, now.manifest)
        problems = self.versions.problems(now.version)
        if problems:
            message = "\n".join(
                [*problems, "Nothing was changed. Run `cahqp registry rollback` to return to a version that verifies."]
            )
            raise RunError(message)

    def _check_request(self, package: Package, request: PromotionRequest, now: Pointer | None) -> None:
        running = None if now is None else str(self.versions.read(now.version).get("package"))
        if now is not None:
            self._check_running(now)
            if request.decision is None and not request.reason:
                message = "Another version is running. Give the gate's --decision for this package, or a --reason."
                raise ConfigError(message)
        name = NONE if now is None else now.version
        if request.expect is not None and request.expect != name:
            message = f"{self.root} runs {name}, not {request.expect}: another process was faster. Run the gate again."
            raise RunError(message)
        if request.decision is not None:
            self._check_decision(package, request.decision, name, running)

    def _check_decision(self, package: Package, decision: Decision, name: str, running: str | None) -> None:
        if not decision.published:
            message = f"The gate keeps the running version: {decision.reason}"
            raise ConfigError(message)
        if decision.candidate.package != package.digest:
            message = f"The decision belongs to another package than {package.path}. Run the gate on this package."
            raise RunError(message)
        if decision.running.package != running:
            message = (
                f"The decision does not compare with {name}, the running version of {self.root}: another process was "
                "faster. Run the gate again."
            )
            raise RunError(message)

    def _check_package(self, package: Package, now: Pointer | None) -> None:
        if now is None:
            return
        if package.classes != now.classes:
            message = (
                f"{package.path} has other classes ({', '.join(package.classes)}) than {self.root} "
                f"({', '.join(now.classes)}). Use another registry."
            )
            raise WeightsError(message)
        if now.key is not None and package.key != now.key:
            message = (
                f"{self.root} accepts only packages signed with key {now.key}; {package.path} was not checked against "
                "it. Give that key with --trusted."
            )
            raise WeightsError(message)

    def _provenance(self, package: Package, request: PromotionRequest, now: Pointer | None) -> dict[str, Any]:
        decision = {} if request.decision is None else request.decision.model_dump(exclude_unset=True)
        return {
            "parents": list(request.parents) or ([] if now is None else [now.version]),
            "data": dict(request.data),
            "metrics": decision.get("sets", {}),
            "decision": decision or None,
            "reason": request.reason or decision.get("reason"),
            "weights": package.manifest["weights"],
        }

    def _check_signer(self, now: Pointer | None, package_key: str | None, key: Path | None) -> None:
        """Check the private key that signs the next pointer."""
        if key is None:
            if now is not None and now.signature is not None:
                message = f"The pointer of {self.root} is signed, so the next one must be. Give that key with --key."
                raise ConfigError(message)
            return
        fingerprint, required = private_fingerprint(key), package_key if now is None or now.key is None else now.key
        if fingerprint != required:
            message = (
                f"--key has the fingerprint {fingerprint}, but packages of {self.root} are checked against "
                f"{required or 'no key'}. Give both halves of one pair, with --trusted and --key."
            )
            raise ConfigError(message)

    def _switch(self, now: Pointer | None, name: str, package: Package, signer: Path | None) -> None:
        digest = self.versions.digest(name)
        if now is None:
            new = Pointer(1, name, digest, (), package.classes, package.key, {name: digest})
        else:
            before = (*now.before, now.version)
            key = now.key or package.key
            manifests = {**now.manifests, now.version: now.manifest, name: digest}
            now = replace(now, manifests=manifests, signature=None)  # a signature covers the manifests
            new = replace(now, generation=now.generation + 1, version=name, manifest=digest, before=before, key=key)
        self._write(now, new, signer)

    def _write(self, now: Pointer | None, new: Pointer, signer: Path | None) -> None:
        """Write the new pointer, signed if there is a key, and a copy of `now`, which may be the new one itself."""
        signed = new if signer is None else sign_pointer(new, signer)
        now = signed if now is new else now
        new = signed
        if now is not None:
            write_pointer(self.root / PREVIOUS, now)
        write_pointer(self.root / RUNNING, new)
        self._keep_copy(new)

    def _keep_copy(self, now: Pointer) -> None:
        """Copy the pointer if the previous one is missing or damaged; repairing a damaged pointer needs one of them."""
        # Written after the pointer: a copy without a pointer is a registry that lost its pointer.
        if not (self.root / PREVIOUS).exists() or self._copy_problems():
            write_pointer(self.root / PREVIOUS, now)

    def _copy_problems(self) -> list[str]:
        """Return the problem of the previous pointer, which repairs a damaged one."""
        try:
            if (self.root / PREVIOUS).exists():
                read_pointer(self.root / PREVIOUS)
        except RunError as error:
            return [str(error)]
        return []

    def _rollback_target(self, to: str | None) -> tuple[Pointer, str]:
        """Return the pointer to start from and the target version of a rollback."""
        try:
            now = read_pointer(self.root / RUNNING)
        except RunError:
            # A damaged pointer is repaired from the previous one.
            if not (self.root / RUNNING).exists() and not (self.root / PREVIOUS).exists():
                raise
            now = self._previous_pointer()
            # One change more than the damaged pointer had, so that devices do not take the new one for an older one.
            return replace(now, generation=now.generation + 1), to or now.version
        if to is None and not now.before:
            message = f"{self.root} has no version before {now.version}. Promote another package."
            raise RunError(message)
        return now, to or now.before[-1]

    def _previous_pointer(self) -> Pointer:
        try:
            return read_pointer(self.root / PREVIOUS)
        except RunError as error:
            message = (
                f"Neither {RUNNING} nor {PREVIOUS} in {self.root} can be read, so the running version is unknown. "
                "Restore one from a copy. Or remove both, and promote the package of the version to run: "
                f"--package {self.versions.root / 'NAME'}."
            )
            raise RunError(message) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self.root / "registry"
        locks.acquire(lock)
        try:
            for name in (RUNNING, PREVIOUS):  # left by a killed process; the lock excludes other writers
                for left in self.root.glob(f".{name}.*.tmp"):
                    left.unlink()
            yield
        finally:
            locks.release(lock)


def _versions_before(now: Pointer, target: str) -> tuple[str, ...]:
    """Return the earlier versions after a rollback to the target."""
    if target in now.before:
        return now.before[: now.before.index(target)]
    return now.before if target == now.version else (*now.before, now.version)
