"""Whether a pool gets nodes, or gives one up."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from comfy_fleet.domain.scaling.looks import PoolLook, busy_share, mean_busy, run_s, within
from comfy_fleet.domain.scaling.rules import GrowRule, ScalingRules


@dataclass(frozen=True, kw_only=True)
class PoolStrength:
    """Which nodes a pool has.

    Attributes:
        ready: They can take jobs, or will again in a moment.
        booting: They were asked for, and can't take jobs yet.
        others: All the rest: drained, being removed, or down for long.
        draining: How many of those the autoscaler drains, and may take back instead of asking for new ones.
        removable: How many of those that are ready the autoscaler may remove.
    """

    ready: int
    booting: int = 0
    others: int = 0
    draining: int = 0
    removable: int = 0

    @property
    def capacity(self) -> int:
        """Nodes that take jobs, or will."""
        return self.ready + self.booting


@dataclass(frozen=True, kw_only=True)
class ScalingDecision:
    """What to do.

    Attributes:
        change: Nodes to add, or, below 0, to remove.
        why: In words.
    """

    change: int
    why: str


def decide(
    rules: ScalingRules,
    looks: Sequence[PoolLook],
    strength: PoolStrength,
    *,
    now: float,
    changed_at: float,
) -> ScalingDecision:
    """Decide about a pool.

    Args:
        rules: Its rules.
        looks: What was seen, the newest last.
        strength: Its nodes now.
        now: Unix seconds.
        changed_at: When the autoscaler last asked for a node, saw one of them become ready, or began to
            remove one; 0: never.

    Returns:
        A change that leads neither below the minimum nor above the maximum.
    """
    room = max(0, rules.maximum - strength.capacity - strength.others + strength.draining)
    missing = rules.minimum - strength.capacity
    if missing > 0:
        why = f"{strength.capacity} of at least {rules.minimum} nodes"
        return _add(missing, room, why, rules)
    if not looks:
        return ScalingDecision(change=0, why="the fleet can't be read")
    left_s = changed_at + rules.cool_down_s - now
    if left_s > 0:
        return ScalingDecision(change=0, why=f"cools down for {left_s:.0f} s")
    if strength.capacity > rules.maximum:
        return _remove(strength, f"{strength.capacity} nodes, at most {rules.maximum} may be")
    holding = [rule for rule in rules.grow if _holds(rule, rules, looks, since=changed_at)]
    if holding:
        rule = max(holding, key=lambda one: one.add)
        if rule.add <= strength.booting:
            return ScalingDecision(change=0, why=f"{rule.words}, and {_boots(strength.booting)}")
        return _add(rule.add - strength.booting, room, rule.words, rules)
    return _fewer(rules, looks, strength)


def _add(wanted: int, room: int, why: str, rules: ScalingRules) -> ScalingDecision:
    if room == 0:
        return ScalingDecision(change=0, why=f"{why}, but there are {rules.maximum} already, the maximum")
    return ScalingDecision(change=min(wanted, room), why=why)


def _remove(strength: PoolStrength, why: str) -> ScalingDecision:
    if strength.removable < 1:
        return ScalingDecision(change=0, why=f"{why}, but none of them is the autoscaler's")
    return ScalingDecision(change=-1, why=why)


def _holds(rule: GrowRule, rules: ScalingRules, looks: Sequence[PoolLook], *, since: float) -> bool:
    """Return whether a rule for more has held for its time, with the nodes that there are now."""
    seen = within(looks, rule.for_s)
    if not seen or looks[-1].at - since < rule.for_s or busy_share(seen) < rules.least_busy:
        return False
    return all(rule.holds_at(oldest_s=look.oldest_s, waiting=look.waiting) for look in seen)


def _fewer(rules: ScalingRules, looks: Sequence[PoolLook], strength: PoolStrength) -> ScalingDecision:
    shrink = rules.shrink
    if shrink is None:
        return ScalingDecision(change=0, why="no rule holds")
    if strength.booting:
        return ScalingDecision(change=0, why=_boots(strength.booting))
    seen = within(looks, shrink.for_s)
    if not seen:
        return ScalingDecision(change=0, why=f"was watched for less than {shrink.for_s:g} s")
    share = mean_busy(seen) / strength.ready if strength.ready else 0.0
    if share >= shrink.busy_below:
        return ScalingDecision(change=0, why=f"no rule holds: {share:.0%} busy")
    idle = f"{share:.0%} busy over {shrink.for_s:g} s, below {shrink.busy_below:.0%}"
    if strength.capacity - 1 < rules.minimum:
        return ScalingDecision(change=0, why=f"{idle}, but {rules.minimum} must stay")
    if rule := grows_after(rules, looks, nodes=strength.ready - 1):
        return ScalingDecision(change=0, why=f"{idle}, but with one less: {rule.words}")
    return _remove(strength, idle)


def grows_after(rules: ScalingRules, looks: Sequence[PoolLook], *, nodes: int) -> GrowRule | None:
    """Return a rule for more that would have held with fewer nodes, or holds at the moment.

    What more nodes did at once than there would be is put off to when some are idle, as in a tank.

    Args:
        rules: The rules.
        looks: What was seen.
        nodes: How many there would be.
    """
    if not rules.grow:
        return None
    if nodes < 1:
        return rules.grow[0] if any(look.busy or look.waiting for look in looks) else None
    each_s = run_s(looks)
    held = dict.fromkeys(rules.grow, 0.0)
    put_off = 0.0  # node seconds
    for before, look in pairwise(looks):
        span_s = look.at - before.at
        put_off = max(0.0, put_off + (look.busy - nodes) * span_s)
        oldest_s = look.oldest_s + put_off / nodes
        waiting = look.waiting + put_off / each_s
        last = look is looks[-1]
        for rule in rules.grow:
            holds = rule.holds_at(oldest_s=oldest_s, waiting=waiting)
            held[rule] = held[rule] + span_s if holds else 0.0
            if holds and (last or held[rule] >= rule.for_s):
                return rule
    return None


def _boots(count: int) -> str:
    return "a node boots" if count == 1 else f"{count} nodes boot"
