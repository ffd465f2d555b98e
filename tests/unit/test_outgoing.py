"""What waits for a client that reads slowly."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from comfy_fleet.api.native.outgoing import SPARE_BYTES, Outgoing
from comfy_fleet.domain.jobs.client_messages import ClientMessage

MOST = 1024 * 1024


def spare(number: int, size: int = 1000) -> ClientMessage:
    return ClientMessage(str(number).encode().rjust(size), spare=True)


def fact(number: int, size: int = 1000) -> ClientMessage:
    return ClientMessage(str(number).encode().rjust(size))


async def rest(outgoing: Outgoing) -> list[ClientMessage]:
    return [await outgoing.next() for _ in range(len(outgoing))]


async def test_messages_are_sent_in_order() -> None:
    outgoing = Outgoing(MOST)
    told = [fact(1), spare(2), fact(3)]
    outgoing.send(told)
    assert await rest(outgoing) == told


async def test_of_progress_the_newest_stays_and_all_facts() -> None:
    outgoing = Outgoing(MOST)
    for number in range(10_000):
        outgoing.send([spare(number)])
        if number % 1000 == 0:
            outgoing.send([fact(number)])
    left = await rest(outgoing)
    assert sum(len(one.data) for one in left) <= SPARE_BYTES
    assert left[-1] == spare(9999)
    assert [one for one in left if not one.spare] == [fact(number) for number in range(0, 10_000, 1000)]
    assert not outgoing.full.is_set()


async def test_more_facts_than_may_wait_close_the_websocket() -> None:
    outgoing = Outgoing(MOST)
    outgoing.send([fact(number) for number in range(2000)])
    assert outgoing.full.is_set() and len(outgoing) == 0
    outgoing.send([fact(1)])
    assert len(outgoing) == 0


async def test_ends_that_were_not_sent_are_known() -> None:
    outgoing = Outgoing(MOST)
    sent, waits = ClientMessage(b"1", ends="sent"), ClientMessage(b"2", ends="waits")
    outgoing.send([sent, waits])
    assert await outgoing.next() == sent
    outgoing.told("sent")
    assert outgoing.untold() == ["waits"]
    outgoing.send([fact(1, size=MOST), ClientMessage(b"3", ends="too much"), fact(2)])
    assert outgoing.full.is_set()
    outgoing.send([ClientMessage(b"4", ends="too late")])
    assert outgoing.untold() == ["waits", "too much", "too late"]


async def test_one_message_may_be_larger_than_all_that_may_wait() -> None:
    outgoing = Outgoing(MOST)
    outgoing.send([spare(1), fact(2, size=3 * MOST)])
    assert await rest(outgoing) == [fact(2, size=3 * MOST)]


async def test_whoever_waits_is_woken() -> None:
    outgoing = Outgoing(MOST)
    coming = asyncio.ensure_future(outgoing.next())
    await asyncio.sleep(0)
    outgoing.send([fact(1)])
    assert await coming == fact(1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=60))
def test_memory_is_bounded_whatever_comes(sizes: list[tuple[bool, int]]) -> None:
    async def fill() -> None:
        outgoing = Outgoing(MOST)
        for is_spare, size in sizes:
            outgoing.send([spare(0, size) if is_spare else fact(0, size)])
            assert outgoing.waiting_bytes <= MOST or len(outgoing) == 1

    asyncio.run(fill())


async def test_an_end_is_told_once_its_client_is_known_to_have_got_it() -> None:
    outgoing = Outgoing(MOST)
    told: list[str] = []
    outgoing.on_told = told.extend
    outgoing.send([ClientMessage(str(number).encode(), ends=str(number)) for number in range(5)])
    for _ in range(4):
        await outgoing.next()
    assert outgoing.untold() == ["0", "1", "2", "3", "4"]
    outgoing.told("1")  # and so what was sent before it
    assert (told, outgoing.untold()) == (["0", "1"], ["2", "3", "4"])
    outgoing.told("0")
    outgoing.told("4")  # what was not sent can't have been read
    assert (told, outgoing.untold()) == (["0", "1"], ["2", "3", "4"])
    outgoing.all_told()
    assert (told, outgoing.untold()) == (["0", "1", "2", "3"], ["4"])
