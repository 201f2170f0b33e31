"""Helper threads of the native backend: every task is done once, nobody waits for ever, and all end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Fixed, LatentDiff
from runtime.backend.native.crew import MOST_TASKS, SLEEPING, Crew, can_help
from runtime.device.build import build_loop
from runtime.model.families.raven import RavenConfig
from runtime.model.transformer import Transformer
from tests.backend import conversations
from tests.backend.conversations import Talk, Turn, hold
from tests.backend.crew_work import follow, lead

pytestmark = pytest.mark.skipif(not can_help(), reason="helpers need Linux")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.0005)


class CountingCrew:
    """A crew of which every task is counted."""

    def __init__(self, helpers: int) -> None:
        self.crew = Crew(helpers)
        self._at = np.uint64(self.crew.shared.ctypes.data), np.uint64(self.crew.semaphore.ctypes.data)
        self.done_by = np.zeros(helpers + 1, np.int64)
        self.crew.start(lambda number: follow(*self._at, number))

    def do(self, sizes: list[int]) -> None:
        counts = np.zeros((len(sizes), max(sizes) + 1), np.int64)
        assert lead(*self._at, np.array(sizes, np.int64), counts, self.done_by) == -1

    @property
    def asleep(self) -> int:
        return int(self.crew.shared[SLEEPING])


@pytest.fixture
def crews() -> Iterator[Callable[[int], CountingCrew]]:
    made: list[CountingCrew] = []

    def make(helpers: int) -> CountingCrew:
        made.append(CountingCrew(helpers))
        return made[-1]

    yield make
    for crew in made:
        crew.crew.stop()


def helpers_running() -> int:
    return sum(thread.name.startswith("braid-helper") for thread in threading.enumerate())


@settings(max_examples=25)
@given(st.integers(0, 4), st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=40), min_size=1, max_size=5))
def test_every_task_of_every_phase_is_done_once(helpers: int, calls: list[list[int]]) -> None:
    crew = CountingCrew(helpers)
    try:
        for sizes in calls:
            crew.do(sizes)
    finally:
        crew.crew.stop()
    assert crew.done_by.sum() == sum(map(sum, calls))


def test_many_short_phases(crews: Callable[[int], CountingCrew]) -> None:
    """Phases of one, two or three tasks are over while helpers are still coming to them."""
    crew = crews(3)
    sizes = [1 + number % 3 for number in range(200_000)]
    crew.do(sizes)
    assert crew.done_by.sum() == sum(sizes)


def test_the_largest_phase(crews: Callable[[int], CountingCrew]) -> None:
    crew = crews(2)
    crew.do([MOST_TASKS, 1, MOST_TASKS])
    assert crew.done_by.sum() == 2 * MOST_TASKS + 1


def test_idle_helpers_sleep_and_wake(crews: Callable[[int], CountingCrew]) -> None:
    crew = crews(2)
    until(lambda: crew.asleep == 2, "idle helpers do not sleep")
    for _ in range(3):
        crew.done_by[:] = 0
        deadline = time.monotonic() + 30
        while not crew.done_by[1:].all():
            assert time.monotonic() < deadline, "helpers that sleep are not woken"
            crew.do([2000] * 20)
        until(lambda: crew.asleep == 2, "helpers that were woken do not sleep again")


def test_sleeping_and_working_helpers_end(crews: Callable[[int], CountingCrew]) -> None:
    before = helpers_running()
    sleeping, working = crews(2), crews(2)
    until(lambda: sleeping.asleep == 2, "idle helpers do not sleep")
    working.do([100] * 100)
    assert helpers_running() == before + 4
    for crew in (sleeping, working):
        crew.crew.stop()
    assert helpers_running() == before
    working.do([10] * 10)
    assert working.done_by.sum() == 100 * 100 + 10 * 10, "without helpers the leader does it all"


def test_several_crews_and_a_busy_process(crews: Callable[[int], CountingCrew]) -> None:
    """More threads than cores, and one that never waits: slow, perhaps, but nothing is lost and all come to an end."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(100))

    made = [crews(3) for _ in range(3)]
    failed: list[BaseException] = []

    def use(crew: CountingCrew) -> None:
        try:
            for _ in range(100):
                crew.do([number % 50 + 1 for number in range(50)])
        except BaseException as error:
            failed.append(error)

    burner = threading.Thread(target=burn)
    leaders = [threading.Thread(target=use, args=(crew,)) for crew in made]
    for thread in (burner, *leaders):
        thread.start()
    for thread in leaders:
        thread.join(60)
        assert not thread.is_alive(), "a crew has come to a standstill"
    over.set()
    burner.join()
    assert not failed
    assert all(crew.done_by.sum() == 100 * sum(range(1, 51)) for crew in made)


# ---- crews of backends ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> Transformer:
    config = RavenConfig(
        n_embd=96,
        n_heads=4,
        intermediate_size=200,
        vocab_size=500,
        block_size=conversations.CONTEXT,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1,
        n_layers_in_coda=1,
        mean_recurrence=3,
        state_init="zero",
    )
    model = conversations.sharpened(Transformer(config), 5)
    assert isinstance(model, Transformer)
    return model


def test_closed_and_forgotten_backends_end_their_helpers(wide: Transformer) -> None:
    before = helpers_running()
    core = build_loop(wide, conversations.settings(cpu_threads=3), Fixed(3))
    assert helpers_running() == before + 2
    core.close()
    core.close()
    assert helpers_running() == before
    core = build_loop(wide, conversations.settings(cpu_threads=3), Fixed(3))
    assert helpers_running() == before + 2
    del core
    gc.collect()
    assert helpers_running() == before


def test_backends_on_several_device_threads(wide: Transformer) -> None:
    """At once, with three workers each, beside a busy thread; every one says what one worker says alone."""
    talks = [Talk((number,), LatentDiff(0.7), (Turn((number, 3, 1), 12),)) for number in range(12)]
    expected = hold(wide, conversations.settings(), talks).essence()
    found: list[object] = []
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(100))

    def device() -> None:
        found.append(hold(wide, conversations.settings(cpu_threads=3), talks).essence())

    burner = threading.Thread(target=burn)
    devices = [threading.Thread(target=device) for _ in range(3)]
    for thread in (burner, *devices):
        thread.start()
    for thread in devices:
        thread.join(120)
        assert not thread.is_alive(), "a backend has come to a standstill"
    over.set()
    burner.join()
    assert found == [expected] * 3
