"""The registered components: who they are, when they were heard, how they are. Pure: time is an argument.

A name belongs to one living process. A component is gone GONE_S after its last heartbeat; its name is then
free for a new process. Health stands beside the state of the run::

    gone     no heartbeat for GONE_S, or it said goodbye
    error    it refused its part of the last transition
    warning  its main loop has not turned for longer than its limit, and no transition handler keeps it busy
    ok       otherwise
"""

from __future__ import annotations

from enum import StrEnum

from phloem.model.errors import SettingsError
from phloem.model.event import Equipment
from phloem.protocol.control import GONE_S, VERSION, Heartbeat, Register

__all__ = ["Directory", "Health", "Member"]

_KINDS = ("frontend", "builder", "logger", "monitor")
_LONGEST_NAME = 31  # it names ODB directories
_OWN_PAUSE_S = 0.5  # run control's loop turns every 0.1 s; a longer pause is its own and nobody else's


class Health(StrEnum):
    """How a component is, beside the state of the run."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    GONE = "gone"


class Member:
    """One registered process. ``heard_s``: monotonic time of its last sign of life; ``fault``: refusal."""

    def __init__(self, identity: bytes, register: Register, now_s: float) -> None:
        self.identity = identity
        self.register = register
        self.heard_s = now_s
        self.heartbeat = Heartbeat(0.0, register.state, register.run)
        self.left: str | None = None
        self.fault = ""

    @property
    def name(self) -> str:
        """The unique name of the component."""
        return self.register.name

    def gone(self, now_s: float) -> bool:
        """Whether it said goodbye or has been silent for longer than GONE_S."""
        return self.left is not None or now_s - self.heard_s > GONE_S

    def health(self, now_s: float, hang_limit_s: float) -> tuple[Health, str]:
        """Its health, and why in words (empty if all is well)."""
        if self.left is not None:
            return Health.GONE, self.left
        if self.gone(now_s):
            return Health.GONE, f"no heartbeat for {now_s - self.heard_s:.1f} s"
        if self.fault:
            return Health.ERROR, self.fault
        if not self.heartbeat.busy and self.heartbeat.turned_ago_s > hang_limit_s:
            turned = self.heartbeat.turned_ago_s
            return (
                Health.WARNING,
                f"hung: its main loop last turned {turned:.1f} s ago (limit {hang_limit_s:g} s)",
            )
        return Health.OK, ""


class Directory:
    """All members by name, in the order in which they came."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._turned_s: float | None = None

    def turned(self, now_s: float) -> None:
        """Run control's loop turns. After a pause of its own, heartbeats wait unread: silence is no death then."""
        pause_s = now_s - self._turned_s if self._turned_s is not None else 0.0
        self._turned_s = now_s
        if pause_s > _OWN_PAUSE_S:
            for member in self._members.values():
                member.heard_s += pause_s

    def join(self, identity: bytes, register: Register, now_s: float) -> Member:
        """Take a component in, or a `SettingsError` that says why not. Registering again is no mistake."""
        _check_register(register)
        self._check_free(register, now_s)
        old = self._members.get(register.name.lower())
        member = Member(identity, register, now_s)
        if old is not None and old.register.incarnation == register.incarnation:
            member.fault = old.fault
        self._members[register.name.lower()] = member
        return member

    def heard(self, identity: bytes, heartbeat: Heartbeat, now_s: float) -> bool:
        """Note a heartbeat; False if nobody of that identity is registered."""
        member = self.by_identity(identity)
        if member is None:
            return False
        member.heard_s = now_s
        member.heartbeat = heartbeat
        return True

    def leave(self, identity: bytes, reason: str) -> Member | None:
        """A component said goodbye."""
        member = self.by_identity(identity)
        if member is not None:
            member.left = f"ended: {reason}" if reason else "ended"
        return member

    def drop(self, identity: bytes) -> None:
        """Forget a component that could not be taken in after all."""
        self._members = {name: m for name, m in self._members.items() if m.identity != identity}

    def forget_left(self) -> None:
        """Drop those who said goodbye; those who vanished stay in sight until they come back."""
        self._members = {name: member for name, member in self._members.items() if member.left is None}

    def members(self) -> list[Member]:
        """Everybody, the gone ones too."""
        return list(self._members.values())

    def living(self, now_s: float) -> list[Member]:
        """Those who are not gone."""
        return [member for member in self._members.values() if not member.gone(now_s)]

    def by_name(self, name: str) -> Member | None:
        """The member of that name, gone or not."""
        return self._members.get(name.lower())

    def by_identity(self, identity: bytes) -> Member | None:
        """The member behind a socket's identity."""
        return next((member for member in self._members.values() if member.identity == identity), None)

    def owner(self, equipment: str, now_s: float) -> Member | None:
        """The living member that declared an equipment."""
        return next((m for m in self.living(now_s) if _declares(m.register, equipment)), None)

    def _check_free(self, register: Register, now_s: float) -> None:
        for member in self.living(now_s):
            other = member.register
            if other.name.lower() == register.name.lower():
                if other.incarnation != register.incarnation:
                    raise SettingsError(
                        f"the name {register.name!r} is taken by pid {other.pid} on {other.host}; "
                        f"end that process, or start this one with another name or index (-i)"
                    )
                continue
            for equipment in register.equipment:
                if _declares(other, equipment.name):
                    raise SettingsError(
                        f"equipment {equipment.name!r} of {register.name} belongs to {other.name} "
                        f"(pid {other.pid}); give it another name or index (-i)"
                    )


def _declares(register: Register, equipment: str) -> bool:
    return any(declared.name.lower() == equipment.lower() for declared in register.equipment)


def _check_register(register: Register) -> None:
    """Refuse what cannot be: another version, an unknown kind, a name that the ODB cannot hold."""
    name = register.name
    if register.version != VERSION:
        raise SettingsError(
            f"{name!r} speaks version {register.version} of the control protocol, run control {VERSION}; "
            f"use the same phloem for both"
        )
    if not name or "/" in name or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise SettingsError(f"component name {name!r} must have 1 to {_LONGEST_NAME} characters and no '/'")
    if register.kind not in _KINDS:
        raise SettingsError(f"{name} is of unknown kind {register.kind!r}; known are {', '.join(_KINDS)}")
    if register.kind == "builder" and len(register.equipment) != 1:
        raise SettingsError(
            f"builder {name} declares {len(register.equipment)} equipments; it has exactly one, its own"
        )
    names = [equipment.name.lower() for equipment in register.equipment]
    if len(set(names)) != len(names):
        raise SettingsError(f"{name} declares the same equipment twice: {', '.join(names)}")
    for equipment in register.equipment:
        _check_equipment(register, equipment)


def _check_equipment(register: Register, equipment: Equipment) -> None:
    if register.kind == "frontend":
        equipment.check()
    elif not equipment.name or "/" in equipment.name or len(equipment.name.encode()) > _LONGEST_NAME:
        raise SettingsError(f"equipment name {equipment.name!r} must have 1 to {_LONGEST_NAME} characters and no '/'")
