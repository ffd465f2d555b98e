"""Users of a fleet that is measured, each with a key."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Users:
    """A keys file and what is in it.

    Attributes:
        keys: Key by user.
        operator: The key of an operator.
        agent: The agents' token.
        env: Settings by which a fleet knows them.
    """

    keys: Mapping[str, str]
    operator: str
    agent: str
    env: Mapping[str, str]

    @classmethod
    def write(cls, stage: Stage, count: int) -> "Users":
        """Draw keys and write them into the stage's folder."""
        keys = {f"user-{number}": secrets.token_hex(16) for number in range(1, count + 1)}
        operator, agent = secrets.token_hex(16), secrets.token_hex(16)
        file: Path = stage.folder / "keys"
        file.touch(0o600)
        lines = [f"{name} {key}" for name, key in keys.items()]
        file.write_text("\n".join([*lines, f"operator {operator} operator", ""]))
        env = {"FLEET_KEYS_FILE": str(file), "FLEET_AGENT_TOKEN": agent}
        return cls(keys=keys, operator=operator, agent=agent, env=env)
