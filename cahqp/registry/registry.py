"""The registry: versions, and one pointer to the one that runs. Whoever reads it finds exactly one at any moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cahqp.edge.package import Package, read_package
from cahqp.edge.pointer import PREVIOUS, RUNNING, Pointer, check_version, read_pointer, write_pointer
from cahqp.edge.runtime import Runtime
from cahqp.errors import ConfigError, RunError, WeightsError
from cahqp.registry.versions import Versions
from cahqp.runs import locks

NONE = "none"


@dataclass(frozen=True)
class PromotionRequest:
    """What is said of a package that is to run.

    Attributes:
        decision: What the gate wrote, `None` where a person decides.
        reason: Why a person decides so.
        expect: Version that must be running now, `none` for none at all; nothing is expected where `None`.
        parents: What the package was made from; the running version where empty.
        data: SHA-256 of the data it was made from, by name.
    """

    decision: Mapping[str, Any] | None = None
    reason: str | None = None
    expect: str | None = None
    parents: Sequence[str] = ()
    data: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """A directory of versions with one pointer.

    Args:
        root: The directory; made by the first promotion.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.versions = Versions(self.root)

    @property
    def pointer(self) -> Pointer | None:
        """What runs, `None` where nothing does yet.

        Raises:
            RunError: The pointer is damaged, or missing where there was one.
        """
        if not (self.root / RUNNING).exists() and not (self.root / PREVIOUS).exists():
            return None
        return read_pointer(self.root / RUNNING)

    def promote(self, package: Path, claim: PromotionRequest, trusted: Path | None = None) -> str:
        """Make a package the running version, unless another process was faster. Returns the version's name.

        Only the last step, a rename, changes what runs. Killed before it, the same call goes on; killed after it, the
        same call finds its work done.

        Args:
            package: Directory of the package.
            claim: Why it may run.
            trusted: Ed25519 public key (PEM) that it must be signed with.

        Raises:
            ConfigError: There is no reason why it may run.
            RunError: Another process is at work or was faster, the registry was changed or cannot be written.
            WeightsError: The package was changed, is signed with another key, has other classes or does not load.
        """
        with self._alone():
            found = read_package(package, trusted)
            now = self.pointer
            if now is not None and self._runs(now, found, trusted):
                self._check_running(now)
                self._keep_copy(now)
                return now.version
            self._check_claim(found, claim, now)
            self._check_package(found, now)
            Runtime(found)
            self.versions.sweep()
            name = self.versions.add(found.path, found.digest, self._described(found, claim, now))
            problems = self.versions.problems(name, trusted)
            if problems:
                raise RunError("\n".join(problems))
            self._switch(now, name, found)
            return name

    def rollback(self, to: str | None = None, trusted: Path | None = None) -> str:
        """Let an earlier version run again, and return its name. A damaged pointer is replaced.

        Args:
            to: Its name; the one that ran before where `None`.
            trusted: Ed25519 public key (PEM) that it must be signed with.

        Raises:
            RunError: There is none, it was changed, or the registry cannot be written.
        """
        with self._alone():
            now, target = self._way_back(to)
            problems = self.versions.problems(target, trusted)
            if problems:
                message = "\n".join([*problems, "Nothing was changed. Name another version with --to."])
                raise RunError(message)
            before = _before(now, target)
            digest = self.versions.digest(target)
            new = replace(now, generation=now.generation + 1, version=target, manifest=digest, before=before)
            self._write(new, new)  # the pointer before it names what was just left: damage must not bring that back
            return target

    def verify(self, trusted: Path | None = None) -> list[str]:
        """Return what is wrong anywhere in the registry, empty when all is well."""
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
        """Return the newest version that holds a package, `None` where there is none."""
        digest = read_package(package).digest
        held = [name for name in self.versions.names() if self.versions.read(name).get("package") == digest]
        return held[-1] if held else None

    def collect(self, keep: int) -> list[str]:
        """Remove versions that are neither running nor among the last ones before it; return what was removed.

        Args:
            keep: How many of the versions before the running one stay.
        """
        with self._alone():
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

    def _runs(self, now: Pointer, package: Package, trusted: Path | None) -> bool:
        """Say whether a package runs already. Signed anew it does not: the version that runs lacks the signature."""
        same = self.versions.read(now.version).get("package") == package.digest
        return same and (trusted is None or not self.versions.problems(now.version, trusted))

    def _check_running(self, now: Pointer) -> None:
        check_version(self.versions.root / now.version, now.manifest)
        problems = self.versions.problems(now.version)
        if problems:
            message = "\n".join(
                [*problems, "Nothing was changed. `cahqp registry rollback` goes back to a version that verifies."]
            )
            raise RunError(message)

    def _check_claim(self, package: Package, claim: PromotionRequest, now: Pointer | None) -> None:
        running = None if now is None else str(self.versions.read(now.version).get("package"))
        if now is not None:
            self._check_running(now)
            if claim.decision is None and not claim.reason:
                message = "A version runs already: give the gate's --decision for this package, or a --reason."
                raise ConfigError(message)
        name = NONE if now is None else now.version
        if claim.expect is not None and claim.expect != name:
            message = f"{self.root} runs {name}, not {claim.expect}: another process was faster. Run the gate again."
            raise RunError(message)
        if claim.decision is not None:
            self._check_decision(package, claim.decision, name, running)

    def _check_decision(self, package: Package, decision: Mapping[str, Any], name: str, running: str | None) -> None:
        try:
            candidate, compared = decision["candidate"]["package"], decision["running"]["package"]
            published = decision["published"]
        except (KeyError, TypeError) as error:
            message = f"The decision lacks {error}: give the decision.json that `cahqp gate` wrote."
            raise ConfigError(message) from error
        if published is not True:
            message = f"The gate keeps the running version: {decision.get('reason')}"
            raise ConfigError(message)
        if candidate != package.digest:
            message = f"The decision is about another package than {package.path}. Run the gate on this one."
            raise RunError(message)
        if compared != running:
            message = (
                f"The decision compares with another version than {name}, which runs in {self.root}: another process "
                "was faster. Run the gate again."
            )
            raise RunError(message)

    def _check_package(self, package: Package, now: Pointer | None) -> None:
        if now is None:
            return
        if package.classes != now.classes:
            message = (
                f"{package.path} is for other classes: {', '.join(package.classes)}; {self.root} runs "
                f"{', '.join(now.classes)}. Use another registry."
            )
            raise WeightsError(message)
        if now.key is not None and package.key != now.key:
            message = (
                f"{self.root} takes packages signed with key {now.key} alone; {package.path} was not checked against "
                "it. Give that key with --trusted."
            )
            raise WeightsError(message)

    def _described(self, package: Package, claim: PromotionRequest, now: Pointer | None) -> dict[str, Any]:
        decision = claim.decision or {}
        return {
            "parents": list(claim.parents) or ([] if now is None else [now.version]),
            "data": dict(claim.data),
            "metrics": decision.get("sets", {}),
            "decision": None if claim.decision is None else dict(decision),
            "reason": claim.reason or decision.get("reason"),
            "weights": package.manifest["weights"],
        }

    def _switch(self, now: Pointer | None, name: str, package: Package) -> None:
        digest = self.versions.digest(name)
        if now is None:
            new = Pointer(1, name, digest, (), package.classes, package.key)
        else:
            before = (*now.before, now.version)
            key = now.key or package.key
            new = replace(now, generation=now.generation + 1, version=name, manifest=digest, before=before, key=key)
        self._write(now, new)

    def _write(self, now: Pointer | None, new: Pointer) -> None:
        if now is not None:
            write_pointer(self.root / PREVIOUS, now)
        write_pointer(self.root / RUNNING, new)
        self._keep_copy(new)

    def _keep_copy(self, now: Pointer) -> None:
        """Where there is no whole pointer before it, keep a copy of the pointer: a rollback from damage needs one."""
        # After the pointer: a copy alone would be a registry that has lost its pointer.
        if not (self.root / PREVIOUS).exists() or self._copy_problems():
            write_pointer(self.root / PREVIOUS, now)

    def _copy_problems(self) -> list[str]:
        """Return what is wrong with the pointer that a rollback from damage starts from."""
        try:
            if (self.root / PREVIOUS).exists():
                read_pointer(self.root / PREVIOUS)
        except RunError as error:
            return [str(error)]
        return []

    def _way_back(self, to: str | None) -> tuple[Pointer, str]:
        """Return the pointer to start from and the version to go to."""
        try:
            now = read_pointer(self.root / RUNNING)
        except RunError:
            # That the pointer is damaged is what this command is for; the one before it says what ran.
            if not (self.root / RUNNING).exists() and not (self.root / PREVIOUS).exists():
                raise
            now = self._before_damage()
            return now, to or now.version
        if to is None and not now.before:
            message = f"{self.root} has run nothing before {now.version}. Promote another package."
            raise RunError(message)
        return now, to or now.before[-1]

    def _before_damage(self) -> Pointer:
        try:
            return read_pointer(self.root / PREVIOUS)
        except RunError as error:
            message = (
                f"Neither {RUNNING} nor {PREVIOUS} in {self.root} can be read, so nothing says what ran. Restore one "
                "from a copy; or remove both, and promote the package in the version that shall run: "
                f"--package {self.versions.root / 'NAME'}."
            )
            raise RunError(message) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        place = self.root / "registry"
        locks.acquire(place)
        try:
            for left in self.root.glob(".*.tmp"):  # of a pointer whose writer was killed; nobody else writes now
                left.unlink()
            yield
        finally:
            locks.release(place)


def _before(now: Pointer, target: str) -> tuple[str, ...]:
    """Return what a rollback from the target goes back through."""
    if target in now.before:
        return now.before[: now.before.index(target)]
    return now.before if target == now.version else (*now.before, now.version)
