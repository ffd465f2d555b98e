"""Fair shares of GPU time between owners, by one start tag each (start-time fair queueing, SFQ).

An owner's *tag* in a queue is the GPU time that it has had, divided by its weight, and a *base* by which it
was lifted when it came. The least tag goes first. Tags never decrease while an owner waits or runs: an index
that still has an earlier one has a lower bound.

See Goyal, Vin and Cheng, "Start-time Fair Queueing" (1996), and Sheng et al., "Fairness in Serving Large
Language Models" (OSDI 2024), whose counters are lifted in the same way.
"""

from collections.abc import Mapping

from comfy_fleet.domain.schedule.ordered_index import OrderedIndex

FORGOTTEN_AT_ONCE = 2  # bases of owners that have left, which one call forgets at most


class Account:
    """What one owner has used.

    Attributes:
        owner: Whose it is.
        weight: The owner's share compared with others'.
        used: GPU seconds that were charged, divided by the weight; it decreases only while the
            owner neither waits nor runs.
        credit: GPU seconds, divided by the weight, that were charged and not used; the next charges use them.
        present: In how many queues it waits, how many runs it has, and how many bases of it are kept.
        active: In how many queues it waits and how many runs it has.
    """

    __slots__ = ("active", "credit", "owner", "present", "used", "weight")

    def __init__(self, owner: str, weight: float) -> None:
        self.owner = owner
        self.weight = weight
        self.used = 0.0
        self.credit = 0.0
        self.present = 0
        self.active = 0

    def charge(self, seconds: float) -> None:
        """Charge GPU time that is probably used."""
        due = seconds / self.weight
        if self.credit:
            paid = min(self.credit, due)
            self.credit -= paid
            due -= paid
        self.used += due

    def settle(self, charged_s: float, used_s: float) -> None:
        """Correct a charge by what was used: what is missing is charged, a surplus becomes credit."""
        if used_s > charged_s:
            self.charge(used_s - charged_s)
        else:
            self.credit += (charged_s - used_s) / self.weight


class Shares:
    """The owners' accounts, and their bases in queues.

    Args:
        weights: Shares of owners compared with 1, that of all others; each is above 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        for owner, weight in weights.items():
            if not weight > 0:
                raise ValueError(f"the weight of owner {owner!r} is {weight}: it must be above 0")
        self._weights = weights
        self._accounts: dict[str, Account] = {}
        self._bases: dict[str, dict[str, float]] = {}  # by queue and owner, of owners that have left
        self._left: dict[str, OrderedIndex] = {}  # the same owners by their tags

    @property
    def size(self) -> int:
        """How many accounts and bases there are: of owners that wait, run or have just left."""
        return len(self._accounts) + sum(map(len, self._bases.values()))

    def account(self, owner: str) -> Account:
        """Return an owner's account."""
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = Account(owner, self._weights.get(owner, 1.0))
        return account

    def enter(self, queue: str, owner: str, virtual: float) -> tuple[Account, float]:
        """Note that an owner waits in a queue, and lift it to the virtual time if it is behind.

        Args:
            queue: The queue's name.
            owner: Who waits there from now on.
            virtual: Virtual time there: nobody who waits has a lower tag.

        Returns:
            The account, and the owner's base there.
        """
        account = self.account(owner)
        base = 0.0
        bases = self._bases.get(queue)
        if bases is not None and owner in bases:
            base = bases.pop(owner)
            self._left[queue].discard(owner)
            account.present -= 1
            if not bases:
                del self._bases[queue], self._left[queue]
        if (
            not account.active and account.credit
        ):  # it is given back: no index has a tag that must not be lowered
            account.used, account.credit = max(0.0, account.used - account.credit), 0.0
        account.present += 1
        account.active += 1
        return account, max(base, virtual - account.used)

    def leave(self, queue: str, account: Account, base: float, virtual: float) -> None:
        """Note that an owner waits in a queue no more; its base is kept while it is ahead of virtual time."""
        account.active -= 1
        account.present -= 1
        if account.used + base > virtual:
            self._bases.setdefault(queue, {})[account.owner] = base
            self._left.setdefault(queue, OrderedIndex()).put(account.owner, account.used + base)
            account.present += 1
        else:
            self._forget_if_gone(account)
        self._forget(queue, virtual)

    def began(self, account: Account) -> None:
        """Note a run."""
        account.active += 1
        account.present += 1

    def ended(self, account: Account) -> None:
        """Note that a run is over."""
        account.active -= 1
        account.present -= 1
        self._forget_if_gone(account)

    def _forget(self, queue: str, virtual: float) -> None:
        """Forget some bases that virtual time has reached: coming back without one gives the same tag."""
        left = self._left.get(queue)
        for _ in range(FORGOTTEN_AT_ONCE if left is not None else 0):
            first = left.first() if left is not None else None
            if left is None or first is None or first[0] > virtual:
                break
            owner, bases = first[1], self._bases[queue]
            account = self._accounts[owner]
            tag = account.used + bases[owner]
            if tag > virtual:
                left.put(owner, tag)
                continue
            del bases[owner]
            left.discard(owner)
            account.present -= 1
            self._forget_if_gone(account)
            if not bases:
                del self._bases[queue], self._left[queue]
                break

    def _forget_if_gone(self, account: Account) -> None:
        if not account.present:
            self._accounts.pop(account.owner, None)
