"""When agents ask the CA, alone and a thousand of them: the shipped schedule in a simulated time."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.agent.schedule import LONGEST_PAUSE, Schedule, Timing

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DRAWS = st.floats(0, 1, exclude_max=True)
AGENTS = 1000
DEFAULT = Timing()


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


@given(life=st.floats(2, 1e7), draw=DRAWS)
def test_renewal_is_in_the_middle_of_the_life(life: float, draw: float) -> None:
    """At half of the life from receipt, give or take one percent."""
    schedule = Schedule.after_success(NOW, NOW + seconds(life), Timing(), draw)
    assert 0.489 * life <= schedule.wait(NOW).total_seconds() <= 0.511 * life


@given(draws=st.lists(DRAWS, min_size=1, max_size=30))
def test_pauses_after_failures_grow_to_a_bound(draws: list[float]) -> None:
    """Each failure is answered by a longer pause, between a quarter of a second and thirty seconds."""
    schedule, now = Schedule(NOW), NOW
    for number, draw in enumerate(draws):
        schedule = schedule.after_failure(now, draw)
        longest = min(30.0, 0.5 * 2**number)
        assert longest / 2 - 1e-6 <= schedule.wait(now).total_seconds() <= longest
        now = schedule.due


@given(life=st.floats(5, 600), draws=st.lists(DRAWS, min_size=40, max_size=40))
def test_a_ca_that_comes_back_in_time_is_noticed_in_time(life: float, draws: list[float]) -> None:
    """Between two retries is at most a tenth of the life: one falls into the last tenth before the end."""
    schedule = Schedule.after_success(NOW, NOW + seconds(life), Timing(), draws[0])
    tries = [schedule.due]
    for draw in draws:
        schedule = schedule.after_failure(schedule.due, draw)
        tries.append(schedule.due)
    assert any(0.9 * life - 0.001 <= (each - NOW).total_seconds() < life for each in tries)


@given(spread=st.floats(0.1, 60), draw=DRAWS)
def test_changed_roots_hasten_the_next_request(spread: float, draw: float) -> None:
    """Within the spread instead of hours later; never later than it would have been anyway."""
    timing = Timing(spread=seconds(spread))
    far = Schedule.after_success(NOW, NOW + timedelta(hours=24), timing, 0.5)
    assert timedelta(0) <= far.hastened(NOW, timing, draw).wait(NOW) <= seconds(spread)
    soon = Schedule(NOW + seconds(0.05))
    assert soon.hastened(NOW, timing, draw).due <= soon.due


def test_a_clock_that_is_set_back_does_not_stop_retries() -> None:
    """After a failure nobody waits longer than the longest pause, whatever the clock says."""
    schedule = Schedule(NOW).after_failure(NOW, 0.5)
    assert schedule.wait(NOW - timedelta(hours=5)) == LONGEST_PAUSE
    assert schedule.wait(NOW + timedelta(hours=5)) < timedelta(0)


def simulate(
    lives: Callable[[random.Random], tuple[float, float]],
    ca_is_up: Callable[[float], bool],
    until: float,
    *,
    roots_change_at: float | None = None,
    timing: Timing = DEFAULT,
) -> tuple[Counter[int], Counter[int], dict[int, float]]:
    """AGENTS agents with the shipped schedule; times in seconds since the start.

    `lives` draws (received, not after) of an agent's present certificate; renewed ones last as long.
    Returns answered requests and refused ones by second, and the end of each agent's last certificate.
    """
    draw = random.Random(7)
    answered: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    ends: dict[int, float] = {}
    queue: list[tuple[datetime, int, Schedule, float]] = []
    for number in range(AGENTS):
        received, end = lives(draw)
        schedule = Schedule.after_success(NOW + seconds(received), NOW + seconds(end), timing, draw.random())
        if roots_change_at is not None:
            changed = NOW + seconds(roots_change_at + draw.random())
            schedule = schedule.hastened(changed, timing, draw.random())
        ends[number] = end
        heapq.heappush(queue, (schedule.due, number, schedule, end - received))
    while queue and queue[0][0] < NOW + seconds(until):
        now, number, schedule, life = heapq.heappop(queue)
        second = (now - NOW).total_seconds()
        if ca_is_up(second):
            answered[int(second)] += 1
            ends[number] = second + life
            schedule = Schedule.after_success(now, now + seconds(life), timing, draw.random())
        else:
            refused[int(second)] += 1
            schedule = schedule.after_failure(now, draw.random())
        heapq.heappush(queue, (schedule.due, number, schedule, life))
    return answered, refused, ends


DAY = 86400.0


def same_moment(draw: random.Random) -> tuple[float, float]:
    """Every agent got its certificate within the same ten seconds: a mesh that was started at once."""
    received = draw.uniform(-10, 0)
    return received, received + DAY


def short_lives(draw: random.Random) -> tuple[float, float]:
    """Certificates of twenty minutes, all of the same moment."""
    return 0.0, 1200.0


@pytest.mark.parametrize(("lives", "half"), [(same_moment, DAY / 2), (short_lives, 600.0)])
def test_a_thousand_agents_do_not_stampede_a_ca_that_comes_back(
    lives: Callable[[random.Random], tuple[float, float]], half: float
) -> None:
    """Down from before the renewals until well after them: at its return at most 80 requests come in any
    second, all agents are served within half a minute, and none was without a valid certificate."""
    back = half + 1.01 * min(half / 2, 900.0)
    answered, refused, ends = simulate(lives, lambda second: second >= back, back + 40)
    assert sum(refused.values()) > AGENTS, "they have tried before"
    assert max(answered.values()) <= 80
    assert sum(answered[second] for second in range(int(back), int(back) + 31)) >= AGENTS
    assert min(ends.values()) > back


def test_agents_do_not_hammer_a_ca_that_is_down() -> None:
    """When the pauses have grown, a thousand agents that wait make at most 80 requests a second."""
    _, refused, _ = simulate(short_lives, lambda second: False, 1100)
    later = [count for second, count in refused.items() if second > 600 + 120]
    assert later
    assert max(later) <= 80


def test_after_an_outage_renewals_stay_spread() -> None:
    """The wave of the return does not come again as one: the renewals after it are no denser than it."""
    answered, _, _ = simulate(short_lives, lambda second: second >= 840, 840 + 1300)
    assert max(count for second, count in answered.items() if second > 840 + 100) <= 80


def test_changed_roots_spread_the_requests_of_a_thousand_agents() -> None:
    """A change is followed within the spread, and the look that notices it, at no more than its rate."""
    timing = Timing(spread=seconds(10))
    answered, _, _ = simulate(same_moment, lambda second: True, 60, roots_change_at=5, timing=timing)
    assert sum(answered.values()) == AGENTS
    assert max(answered.values()) <= 140
    assert set(answered) <= set(range(5, 17))


def test_the_simulation_can_see_a_stampede() -> None:
    """With the spread taken away the same count shows a thousand requests within two seconds."""
    timing = Timing(spread=seconds(0.001))
    answered, _, _ = simulate(same_moment, lambda second: True, 60, roots_change_at=5, timing=timing)
    assert max(answered.values()) > 400
