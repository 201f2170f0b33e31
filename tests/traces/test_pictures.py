"""What people look at: the printed tree, the exported file, and the command line around them."""

from __future__ import annotations

import io
import json
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from policies import Fixed
from runtime.link import events as ev
from runtime.link.sampling import Sampling
from runtime.link.work import Work
from tests.traces.strategies import operations
from tests.traces.toy_device import ToyCore, ToyDevice, header, run_program
from traces import Trace, TraceWriter, read
from traces.__main__ import main
from traces.printing import load_decode, show
from traces.viewer_format import export, trace_events

Json = dict[str, Any]

CHILD = (0, 0)


def recorded_events() -> list[ev.AnyEvent]:
    """A root that spawns a child (and is refused another), joins it, and goes on; the child was evicted once."""
    sampling, depth = Sampling(), Fixed(4)

    def finished(time: float, thread: tuple[int, ...], position: int, count: int, iterations: int) -> ev.AnyEvent:
        return ev.GenerateFinished(
            time=time,
            thread=thread,
            position=position,
            reason="stop",
            work=Work(generated=count, computed=count, iterations=iterations, recomputed=0, cached_tokens=0),
        )

    def sampled(time: float, thread: tuple[int, ...], position: int, token: int, depth: int) -> ev.AnyEvent:
        return ev.Sampled(time=time, tick=0, thread=thread, position=position, token=token, depth=depth, logprob=-0.5)

    def started(time: float, thread: tuple[int, ...], position: int) -> ev.AnyEvent:
        return ev.GenerateStarted(
            time=time, thread=thread, position=position, max_tokens=9, sampling=sampling, depth=depth
        )

    def spawned(time: float, child: tuple[int, ...] | None) -> ev.AnyEvent:
        return ev.Spawned(
            time=time, thread=(0,), child=child, by_model=True, fork=False, tokens=(3,), reason="" if child else "full"
        )

    return [
        ev.RunStarted(time=0.0, thread=(0,), prompt="one two"),
        ev.ThreadOpened(time=0.001, thread=(0,), inherits=None, seed=7, depth=depth),
        ev.Received(time=0.002, thread=(0,), position=0, tokens=(1, 2)),
        started(0.003, (0,), 0 + 2),
        sampled(0.01, (0,), 2, 3, 2),
        spawned(0.011, CHILD),
        spawned(0.012, None),
        ev.ThreadOpened(time=0.013, thread=CHILD, inherits=None, seed=7, depth=depth),
        ev.Received(time=0.014, thread=CHILD, position=0, tokens=(3,)),
        started(0.015, CHILD, 1),
        sampled(0.02, (0,), 3, 4, 5),
        finished(0.021, (0,), 4, 2, 7),
        ev.Evicted(time=0.022, thread=CHILD, pages=3),
        sampled(0.03, CHILD, 1, 5, 4),
        finished(0.031, CHILD, 2, 1, 4),
        ev.ThreadEnded(time=0.032, thread=CHILD, outcome="returned", message=(5,), text="five", error=""),
        ev.ThreadClosed(time=0.033, thread=CHILD),
        ev.Joined(time=0.034, thread=(0,), children=(CHILD,), delivered=(CHILD,), cancelled=()),
        ev.TickDone(time=0.035, tick=0, seconds=0.01, entered=3, in_flight=11, left=3, waiting=2, pages_used=6),
        ev.ThreadEnded(time=0.04, thread=(0,), outcome="failed", message=(), text="", error="out of tokens"),
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.trace"
    with TraceWriter(path, header()) as writer:
        writer.write_many(recorded_events())
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = {word: number for number, word in enumerate(["zero", "one", "two", "three", "four", "five"])}
    Tokenizer(WordLevel(words, unk_token="zero")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def shown(trace: Trace, width: int = 200, decode: Any = None) -> str:
    output = io.StringIO()
    show(trace, Console(file=output, width=width), decode)
    return output.getvalue()


def test_show_prints_the_numbers_of_every_thread() -> None:
    text = shown(Trace(header=header(), events=recorded_events(), lost="truncated at byte 9"))
    assert "toy, seed 7, policy null" in text
    assert "2 threads, 3 tokens sampled, 0 computed (0 again), " in text
    assert "0 of 0 prompt and message tokens from the cache (0%), " in text
    assert "11 iterations in 1 ticks, 0.040 s" in text
    root, prompt, child, answer = [line.lstrip("│├└─ ").rstrip() for line in text.splitlines()[2:6]]
    assert root == (
        "0  received 2, sampled 2, depth 3.50, iterations 7, 0.000 to 0.040 s, 1 spawns refused  failed: out of tokens"
    )
    assert prompt == "< one two"
    assert child == (
        "0.0  received 1, sampled 1, depth 4.00, iterations 4, 0.013 to 0.033 s, evicted 1 times  returned"
    )
    assert answer == "> five"
    assert "Not all of this trace could be read: truncated at byte 9" in text


def test_show_prints_text_where_it_can_and_keeps_to_the_width(tokenizer: Path) -> None:
    text = shown(Trace(header=header(), events=recorded_events()), decode=load_decode(tokenizer))
    assert "< one two\n" in text
    assert "> three four\n" in text
    assert "> five\n" in text
    narrow = shown(Trace(header=header(), events=recorded_events()), width=40, decode=load_decode(tokenizer))
    assert max(len(line) for line in narrow.splitlines()) <= 40
    assert "iterations" in narrow


def test_text_is_not_markup() -> None:
    text = shown(Trace(header=header(), events=recorded_events()), decode=lambda tokens: "[/bold] [red]x")
    assert "< [/bold] [red]x" in text


HOSTILE = "\x1b]0;owned\x07\x9b31m\u202edlrow\r\x7f"


def hostile() -> Trace:
    """A trace whose texts move a terminal's cursor and reverse its letters, wherever a trace has texts."""
    events: list[ev.AnyEvent] = [
        ev.RunStarted(time=0.0, thread=(0,), prompt=HOSTILE),
        ev.ThreadEnded(time=0.1, thread=(0,), outcome=HOSTILE, message=(), text=HOSTILE, error=HOSTILE),
        ev.Spawned(time=0.2, thread=(0,), child=None, by_model=True, fork=False, tokens=(), reason=HOSTILE),
    ]
    return Trace(header=header(checkpoint=HOSTILE, policy={"type": HOSTILE}), events=events, lost=HOSTILE)


def is_safe(text: str) -> bool:
    return all(
        char == "\n" or (char.isprintable() and not unicodedata.bidirectional(char).startswith("RL")) for char in text
    )


def test_control_characters_are_not_for_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(hostile())
    assert is_safe(text)
    assert text.count(r"\x1b]0;owned\x07\x9b31m\u202edlrow") >= 5
    exported = export(hostile())
    assert is_safe(exported.decode())
    (life,) = [event for event in json.loads(exported)["traceEvents"] if event["name"] == "thread 0"]
    assert life["args"]["text"] == HOSTILE, "what is read from it does not change"
    path = tmp_path / "hostile.trace"
    with TraceWriter(path, hostile().header) as writer:
        writer.write_many(hostile().events)
    assert main(["replay", str(path)]) == 0
    assert main(["show", str(tmp_path / HOSTILE)]) == 2
    printed = capsys.readouterr()
    assert is_safe(printed.out + printed.err)


def test_many_roots_are_shown_a_line_each_and_deep_ones_keep_to_the_width() -> None:
    wide = shown(Trace(header=header(), events=[ev.ThreadClosed(time=0.0, thread=(root,)) for root in range(500)]))
    assert [line.split()[0] for line in wide.splitlines()[2:]] == [str(root) for root in range(500)]
    chain: list[ev.AnyEvent] = [ev.ThreadClosed(time=0.0, thread=(0,) * depth) for depth in range(1, 40)]
    deep = shown(Trace(header=header(), events=chain), width=60)
    assert max(len(line) for line in deep.splitlines()[2:]) <= 60
    assert deep.count("unfinished") == 39


@given(operations)
def test_any_trace_can_be_shown(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore()
    run_program(core, drawn)
    for end in (0, 1, len(core.events) // 2, len(core.events)):
        text = shown(Trace(header=header(), events=core.events[:end]))
        opened = [event for event in core.events[:end] if isinstance(event, ev.ThreadOpened)]
        assert text.count("received ") == len(opened)


# ---- export ---------------------------------------------------------------------------------------------------------


def check_format(events: list[Json]) -> None:
    """The rules of the Trace Event Format that these events could break."""
    slices: dict[tuple[int, int], list[Json]] = defaultdict(list)
    flows: dict[int, list[Json]] = defaultdict(list)
    names = {(event["pid"], event["tid"]): event for event in events if event["name"] == "thread_name"}
    for event in events:
        assert event["pid"] > 0
        assert event["ts"] >= 0
        match event["ph"]:
            case "X":
                assert event["dur"] >= 0
                slices[event["pid"], event["tid"]].append(event)
            case "s" | "f":
                flows[event["id"]].append(event)
            case "C":
                assert all(isinstance(value, int) for value in event["args"].values())
            case "i":
                assert event["s"] == "t"
            case phase:
                assert phase == "M"
                assert set(event["args"]) <= {"name", "sort_index"}
    assert set(slices) <= set(names)
    assert len({tid for _, tid in names}) == len(names)
    for track in slices.values():
        stack: list[float] = []
        for event in sorted(track, key=lambda event: (event["ts"], -event["dur"])):
            while stack and stack[-1] <= event["ts"]:
                stack.pop()
            end = event["ts"] + event["dur"]
            assert not stack or end <= stack[-1] + 1e-6, "slices of a track must nest"
            stack.append(end)
    for start, end in flows.values():
        assert (start["ph"], end["ph"], end["bp"]) == ("s", "f", "e")
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert start["ts"] <= end["ts"]
        for side in (start, end):
            around = slices[side["pid"], side["tid"]]
            assert any(slice["ts"] <= side["ts"] <= slice["ts"] + slice["dur"] for slice in around)


def test_export_draws_threads_waits_and_arrows() -> None:
    data = json.loads(export(Trace(header=header(), events=recorded_events())))
    events = data["traceEvents"]
    check_format(events)
    assert data["otherData"]["checkpoint"] == "toy"
    names = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert set(names) == {"0", "0.0"}

    def on(thread: str, phase: str) -> list[tuple[str, float, float]]:
        return [
            (event["name"], event["ts"], event.get("dur", 0))
            for event in events
            if event["tid"] == names[thread] and event["ph"] == phase
        ]

    assert on("0", "X") == [
        ("thread 0", 0, 40_000),
        ("generate", 3_000, 18_000),
        ("prefill", 3_000, 7_000),
        ("decode", 10_000, 11_000),
        ("waiting at join", 21_000, 13_000),
    ]
    assert on("0", "i") == [("spawn refused", 12_000, 0)]
    assert on("0.0", "i") == [("evicted", 22_000, 0)]
    assert on("0", "s") == [("spawn", 11_000, 0)]
    assert on("0.0", "f") == [("spawn", 13_000, 0)]
    assert on("0.0", "s") == [("join", 33_000, 0)]
    assert on("0", "f") == [("join", 34_000, 0)]
    counters = {event["name"]: event["args"]["value"] for event in events if event["ph"] == "C"}
    assert counters == {"tokens in flight": 11, "threads waiting": 2, "pages used": 6}


def test_counters_have_a_sample_where_they_change() -> None:
    def tick(number: int, in_flight: int, waiting: int) -> ev.AnyEvent:
        return ev.TickDone(
            time=number / 10,
            tick=number,
            seconds=0.1,
            entered=0,
            in_flight=in_flight,
            left=0,
            waiting=waiting,
            pages_used=4,
        )

    ticks = [tick(0, 3, 0), tick(1, 3, 0), tick(2, 5, 0), tick(3, 5, 1), tick(4, 3, 1)]
    samples = [event for event in trace_events(Trace(header=header(), events=ticks)) if event["ph"] == "C"]
    assert [(event["name"], event["ts"], event["args"]["value"]) for event in samples] == [
        ("tokens in flight", 0.0, 3),
        ("threads waiting", 0.0, 0),
        ("pages used", 0.0, 4),
        ("tokens in flight", 200_000.0, 5),
        ("threads waiting", 300_000.0, 1),
        ("tokens in flight", 400_000.0, 3),
    ]


@given(operations)
def test_any_trace_can_be_exported(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore()
    run_program(core, drawn)
    for end in (0, 1, len(core.events) // 2, len(core.events)):
        trace = Trace(header=header(), events=core.events[:end])
        events = json.loads(export(trace))["traceEvents"]
        check_format(events)
        assert len(events) == len(list(trace_events(trace)))
        started = sum(isinstance(event, ev.GenerateStarted) for event in trace.events)
        assert sum(event["name"] == "generate" for event in events) == started


# ---- command line ---------------------------------------------------------------------------------------------------


def test_show_command(file: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file), "--tokenizer", str(tokenizer)]) == 0
    printed = capsys.readouterr()
    assert "> three four" in printed.out
    assert printed.err == ""
    assert main(["show", str(file), "--tokenizer", str(file)]) == 2
    assert "is not a tokenizer" in capsys.readouterr().err
    assert main(["show", str(file), "--tokenizer", str(file.parent / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_show_finds_the_tokenizer_of_the_checkpoint(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tokenizer / "own.trace"
    with TraceWriter(path, header(checkpoint=str(tokenizer))) as writer:
        writer.write_many(recorded_events())
    assert main(["show", str(path)]) == 0
    assert "> three four" in capsys.readouterr().out


def test_replay_command_prints_events_in_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [type(event).__name__ for event in recorded_events()]
    assert "0.010000 Sampled tick=0 thread=(0,) position=2 token=3 depth=2" in lines[4]


def test_a_cut_off_file_is_shown_and_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(file.read_bytes()[:-20])
    for command in ("show", "replay"):
        assert main([command, str(file)]) == 0
        assert "truncated at byte" in capsys.readouterr().err


def test_unreadable_files_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["show"], ["replay"], ["replay", "--verify"], ["export"]):
        assert main([*command, str(tmp_path / "none")]) == 2
        assert "Cannot read the trace" in capsys.readouterr().err


def test_export_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(file)]) == 0
    assert "ui.perfetto.dev" in capsys.readouterr().err
    written = (tmp_path / "run.trace.json").read_bytes()
    assert written == export(read(file))
    assert main(["export", str(file), "-o", str(tmp_path / "other.json")]) == 0
    assert (tmp_path / "other.json").read_bytes() == written
    with pytest.raises(SystemExit):
        main(["export", str(file), "-o", str(tmp_path)])
    assert "it is a directory" in capsys.readouterr().err


def test_verify_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = ToyCore()
    run_program(core, [(0, 0), (2, 1), (3, 38)])
    path = tmp_path / "toy.trace"
    with TraceWriter(path, header()) as writer:
        writer.write_many(core.events)
    command = ["replay", str(path), "--verify"]
    assert main(command, lambda header: ToyDevice(ToyCore())) == 0
    assert "1 threads, 1 generates, 3 tokens executed again and found equal" in capsys.readouterr().out
    assert main(command, lambda header: ToyDevice(ToyCore(change=lambda path, position: (0, position // 4)))) == 1
    assert "thread 0, position 4: depth" in capsys.readouterr().err


def test_verify_of_nothing_finds_nothing_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[list[ev.AnyEvent]] = [[], [event for event in recorded_events() if not isinstance(event, ev.Sampled)]]
    for number, some in enumerate(events):
        path = tmp_path / f"{number}.trace"
        with TraceWriter(path, header()) as writer:
            writer.write_many(some)
        assert main(["replay", str(path), "--verify"], lambda header: ToyDevice(ToyCore())) == 2
        printed = capsys.readouterr()
        assert "Nothing could be executed again" in printed.err
        assert "equal" not in printed.out
        assert ("2 generates sampled nothing" in printed.out) == (number == 1)


def test_verify_without_the_checkpoint_or_with_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lost.trace"
    TraceWriter(path, header(checkpoint=str(tmp_path / "gone"))).close()
    assert main(["replay", str(path), "--verify"]) == 2
    assert "gone" in capsys.readouterr().err
    TraceWriter(path, header(engine={"max_in_flight": "many"}), overwrite=True).close()
    assert main(["replay", str(path), "--verify"]) == 2
    assert "max_in_flight" in capsys.readouterr().err
