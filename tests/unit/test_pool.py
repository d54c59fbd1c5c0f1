"""The pool of idle connections: newest first, bounded, short-lived, and never one that cannot be used."""

from __future__ import annotations

from fal_proxy.upstream.pool import Pool


class Idle:
    """A connection as the pool knows it."""

    def __init__(self, *, usable: bool = True) -> None:
        self.open = self.usable = usable
        self.closed = 0

    def close(self) -> None:
        """Count the closes."""
        self.closed += 1


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_an_empty_pool_gives_nothing() -> None:
    pool: Pool[str, Idle] = Pool()
    assert pool.take("a") is None
    assert len(pool) == 0


def test_the_connection_used_last_is_taken_first() -> None:
    pool: Pool[str, Idle] = Pool()
    connections = [Idle() for _ in range(3)]
    for connection in connections:
        pool.put("a", connection)
    assert [pool.take("a") for _ in range(4)] == [*reversed(connections), None]
    assert len(pool) == 0


def test_origins_do_not_share_connections() -> None:
    pool: Pool[str, Idle] = Pool()
    pool.put("a", Idle())
    assert pool.take("b") is None
    assert pool.take("a") is not None


def test_a_connection_expires_after_its_idle_time_and_not_before() -> None:
    clock = Clock()
    pool: Pool[str, Idle] = Pool(idle_seconds=4, clock=clock)
    old, young = Idle(), Idle()
    pool.put("a", old)
    clock.now += 2
    pool.put("a", young)
    clock.now += 1.9
    pool.expire()
    assert len(pool) == 2
    clock.now += 0.1
    assert pool.take("b") is None  # any take expires every origin
    assert (old.closed, young.closed, len(pool)) == (1, 0, 1)
    clock.now += 2
    assert pool.take("a") is None
    assert (young.closed, len(pool)) == (1, 0)


def test_a_returned_connection_begins_a_new_idle_time() -> None:
    clock = Clock()
    pool: Pool[str, Idle] = Pool(idle_seconds=4, clock=clock)
    connection = Idle()
    for _ in range(5):
        pool.put("a", connection)
        clock.now += 3.9
        assert pool.take("a") is connection
    assert connection.closed == 0


def test_no_more_than_max_idle_are_kept_over_all_origins() -> None:
    pool: Pool[int, Idle] = Pool(max_idle=3)
    connections = [Idle() for _ in range(5)]
    for origin, connection in enumerate(connections):
        pool.put(origin, connection)
    assert len(pool) == 3
    assert [connection.closed for connection in connections] == [0, 0, 0, 1, 1]
    assert pool.take(0) is connections[0]
    pool.put(0, Idle())
    assert len(pool) == 3


def test_an_unusable_connection_is_closed_and_not_kept() -> None:
    pool: Pool[str, Idle] = Pool()
    dead = Idle(usable=False)
    pool.put("a", dead)
    assert (dead.closed, len(pool)) == (1, 0)


def test_a_connection_that_died_while_idle_is_passed_over() -> None:
    pool: Pool[str, Idle] = Pool()
    alive, dead = Idle(), Idle()
    pool.put("a", alive)
    pool.put("a", dead)
    dead.usable = False
    assert pool.take("a") is alive
    assert (dead.closed, len(pool)) == (1, 0)


def test_dead_connections_give_their_room_back() -> None:
    pool: Pool[str, Idle] = Pool(max_idle=2)
    connections = [Idle(), Idle()]
    for connection in connections:
        pool.put("a", connection)
        connection.open = False
    pool.expire()
    assert len(pool) == 0
    pool.put("a", Idle())
    assert len(pool) == 1


def test_a_closed_pool_has_closed_everything_and_keeps_nothing_more() -> None:
    pool: Pool[str, Idle] = Pool()
    before, after = Idle(), Idle()
    pool.put("a", before)
    pool.close()
    pool.close()
    pool.put("a", after)
    assert (before.closed, after.closed, len(pool)) == (1, 1, 0)
    assert pool.take("a") is None


def test_a_thousand_origins_used_once_leave_nothing_behind() -> None:
    clock = Clock()
    pool: Pool[int, Idle] = Pool(clock=clock)
    for origin in range(1000):
        pool.put(origin, Idle())
        clock.now += 5
        pool.expire()
    assert len(pool) == 0
