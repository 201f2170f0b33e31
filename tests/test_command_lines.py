"""Every `python -m ...` of the repository tells what is wrong with its arguments, with exit status 2, before it loads
anything."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

from runtime.model import checkpoint

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "examples", "policies", "runtime", "traces")

Case = tuple[list[str], str]
"""Arguments, in which {...} are the files of `files`, and what the message has to name."""


def seeded(command: list[str]) -> list[Case]:
    """Counts and seeds that no run has."""
    return [
        ([*command, option, value], option)
        for option in ("--steps", "--processes")
        for value in ("0", "-1", "1.5", "many", "", "1" + "0" * 5000)
    ]


COUNTDOWN = ["22", "26", "31", "53", "--target", "27"]
EXCLUDE = ["{new}", "--exclude", "{problems}"]

WHAT_IF = [
    ["--sweep", "t"],
    ["--sweep", "t=1:x"],
    ["--sweep", "t=0:inf:2"],
    ["--sampling", "temperature=hot"],
    ["--sampling", "0.7"],
    ["--limit", "0"],
    ["--verifier", "nowhere:at_all"],
    ["--verifier", "json"],
    ["--checkpoint", "{missing}"],
    ["--json", "{missing}/found.json"],
]

SIMULATE = [
    *(["--concurrency", wrong] for wrong in ("0", "8,", "1,many")),
    *(["--arrivals", wrong] for wrong in ("poisson:20", "poisson:0/s", "poisson:nan/s", "uniform:3/s")),
    *(["--depth", wrong] for wrong in ("Fixe(2)", "MaxChildren(2)")),
    *([option, "0"] for option in ("--replicas", "--questions", "--pages", "--lanes", "--order")),
    *([option, "{missing}"] for option in ("--device", "--checkpoint", "--seed")),
    ["--json", "{missing}/found.json"],
]

CASES: dict[str, list[Case]] = {
    "benchmarks": [
        (["attenton"], "no benchmark attenton; there are"),
        (["--rounds", "0"], "--rounds"),
        (["--rounds", "-1"], "--rounds"),
        (["--rounds", "nan"], "--rounds"),
        (["--json", "{directory}"], "--json"),
        (["--json", "{missing}/found.json"], "--json"),
        (["--markdown", ""], "--markdown"),
    ],
    "benchmarks.peers": [
        (["--peer", "vlm"], "--peer"),
        (["--model", "large"], "--model"),
        (["--dtype", "float16"], "--dtype"),
        (["--rounds", "0"], "--rounds"),
        (["--batch", "0"], "--batch"),
        (["--batch", "8", "-3"], "--batch"),
        (["--batch", "1000000000000"], "--batch"),
        (["--threads", "0"], "--threads"),
        (["--threads", "100000"], "--threads"),
        (["--json", "{missing}/found.json"], "--json"),
        (["--vllm-python", "{missing}"], "--vllm-python"),
        (["--huginn", "{problems}"], "--huginn"),
        (["--peer", "vllm"], "Nothing was compared"),
    ],
    "benchmarks.peers.engine_side": [([], "no job on standard input")],
    "benchmarks.peers.huginn_reference": [([], "no job on standard input")],
    "benchmarks.peers.transformers_batching": [([], "no job on standard input")],
    "benchmarks.peers.transformers_generate": [([], "no job on standard input")],
    "benchmarks.peers.vllm_cpu": [([], "no job on standard input")],
    "examples.checked": [(["1", "2", "3", "4"], "--target"), (["1", "2", "3", "x", "--target", "9"], "numbers")],
    "examples.countdown": [
        ([], "--problems FILE"),
        (["22", "26", "31", "53"], "--target"),
        (["22", "26", "--target", "27"], "four numbers"),
        (["22", "26", "31", "-53", "--target", "27"], "numbers"),
        (["22", "26", "31", "200", "--target", "27"], "numbers"),
        (["22", "26", "31", "x", "--target", "27"], "numbers"),
        ([*COUNTDOWN[:-1], "1000"], "--target"),
        ([*COUNTDOWN, "--iterations", "0"], "--iterations"),
        ([*COUNTDOWN, "--iterations", "1000000000"], "--iterations"),
        ([*COUNTDOWN, "--children", "-1"], "--children"),
        ([*COUNTDOWN, "--serial", "--within", "100"], "--within"),
        ([*COUNTDOWN, "--limit", "3"], "--limit"),
        ([*COUNTDOWN, "--trace", "{directory}"], "--trace"),
        ([*COUNTDOWN, "--trace", "{missing}/run.trace"], "--trace"),
        (["--problems", "{problems}", "--limit", "0"], "--limit"),
        (["--problems", "{problems}", "--limit", "-1"], "--limit"),
        (["--problems", "{problems}", "--target", "27"], "--target"),
        *((["--problems", f"{{{name}}}"], "--problems") for name in ("missing", "directory", "empty", "torn", "none")),
        *((["--problems", f"{{{name}}}"], "--problems") for name in ("binary", "deep", "numberless", "negative")),
        *((["--problems", f"{{{name}}}"], "--problems") for name in ("objects", "nameless")),
    ],
    "benchmarks.countdown.calibrate": [
        ([], "checkpoint"),
        (["{missing}"], "missing"),
        (["countdown", "--depth", "0"], "--depth"),
        (["countdown", "--depth", "nan"], "--depth"),
        (["countdown", "--depth", "inf"], "--depth"),
        (["countdown", "--price", "-0.1"], "--price"),
        (["countdown", "--problems", "0"], "--problems"),
        (["countdown", "--criteria", "Nothing"], "--criteria"),
        (["countdown", "--exclude", "{empty}"], "--exclude"),
        (["countdown", "--seed", "x"], "--seed"),
    ],
    "benchmarks.countdown.export": [
        ([], "run"),
        (["{missing}", "{new}"], "run"),
        (["{directory}", "{new}"], "holds no training run"),
        (["{directory}", "{problems}"], "directory"),
        (["{directory}", "{new}", "--context", "0"], "--context"),
        (["{directory}", "{new}", "--context", "1000000000"], "--context"),
        (["{torn_run}", "{new}"], "training.safetensors"),
    ],
    "benchmarks.countdown.reinforce": [
        *seeded(["{directory}", *EXCLUDE]),
        (["{directory}", "{new}"], "--exclude"),
        (["{missing}", *EXCLUDE], "checkpoint"),
        (["{directory}", "{problems}", "--exclude", "{problems}"], "directory"),
        (["{directory}", "{new}", "--exclude", "{torn}"], "--exclude"),
        (["{directory}", *EXCLUDE, "--rate", "0"], "--rate"),
        (["{directory}", *EXCLUDE, "--rate", "nan"], "--rate"),
        (["{directory}", *EXCLUDE, "--kl", "-1"], "--kl"),
        (["{directory}", *EXCLUDE, "--iteration-price", "-1"], "--iteration-price"),
        (["{directory}", *EXCLUDE, "--path-price", "inf"], "--path-price"),
        (["{directory}", *EXCLUDE, "--seed", "-1"], "--seed"),
        (["{directory}", *EXCLUDE, "--questions", "1"], "--questions"),
        (["{directory}", *EXCLUDE, "--processes", "1"], "config.json"),
    ],
    "benchmarks.countdown.report": [
        (["--problems", "{missing}"], "--problems"),
        (["--problems", "{none}"], "none"),
        (["--problems", "{torn}"], "torn"),
        (["--problems", "{problems}", "--limit", "0"], "--limit"),
        (["--problems", "{problems}", "--only", "nothing"], "--only"),
        (["--problems", "{problems}", "--output", "{problems}"], "--output"),
        (["--problems", "{problems}", "--cache", "{problems}/below"], "--cache"),
    ],
    "benchmarks.countdown.train": [
        *seeded(EXCLUDE),
        (["{new}"], "--exclude"),
        (["{problems}", "--exclude", "{problems}"], "directory"),
        (["{new}", "--exclude", "{none}"], "--exclude"),
        ([*EXCLUDE, "--hold", "1.5"], "--hold"),
        ([*EXCLUDE, "--hold", "nan"], "--hold"),
        ([*EXCLUDE, "--muon-rate", "0"], "--muon-rate"),
        ([*EXCLUDE, "--adam-rate", "-1"], "--adam-rate"),
        ([*EXCLUDE, "--tokens", "1"], "--tokens"),
        ([*EXCLUDE, "--start", "{missing}"], "--start"),
        ([*EXCLUDE, "--demonstrations", "none"], "--demonstrations"),
    ],
    "examples.custom_policy": [(["something"], "something")],
    "examples.latents": [
        (["{directory}"], "figure"),
        (["{missing}/figure.svg"], "figure"),
        (["one", "another"], "another"),
    ],
    "examples.merge_sort": [
        ([], "--checkpoint"),
        (["7 5", "--checkpoint", "{missing}"], "--checkpoint"),
        (["7 5", "--checkpoint", "{directory}"], "config.json"),
        (["7 x", "--checkpoint", "{directory}"], "from 0 to 99"),
        (["", "--checkpoint", "{directory}"], "from 0 to 99"),
        (["--evaluate", "0", "--checkpoint", "{directory}"], "--evaluate"),
        (["--evaluate", "-5", "--checkpoint", "{directory}"], "--evaluate"),
        (["7 5", "--checkpoint", "{directory}", "--trace", "{missing}/run.trace"], "--trace"),
    ],
    "examples.merge_sort.reinforce": [
        *seeded(["{directory}", "{new}"]),
        (["{missing}", "{new}"], "checkpoint"),
        (["{directory}", "{problems}"], "directory"),
    ],
    "examples.merge_sort.train": [*seeded(["{new}"]), ([], "directory"), (["{problems}"], "directory")],
    "examples.record_replay": [
        (["{directory}"], "file"),
        (["{missing}/run.trace"], "file"),
        (["one", "another"], "another"),
    ],
    "examples.search": [
        ([], "--target"),
        (["22", "26", "31", "--target", "27"], "numbers"),
        (["22", "26", "31", "-1", "--target", "27"], "numbers"),
        ([*COUNTDOWN[:-1], "1e3"], "--target"),
    ],
    "examples.self_consistency": [(["something"], "something")],
    "examples.chaos": [(["--kills", "-1"], "--kills"), (["something"], "something")],
    "examples.sharing": [(["--problems", "0"], "from 1 to 1000"), (["something"], "something")],
    "examples.streaming": [(["something"], "something")],
    "examples.summary": [
        ([], "file"),
        (["{missing}"], "missing"),
        (["{empty}"], "expected a title"),
        (["{problems}", "--model", "{missing}"], "expected a title"),
    ],
    "policies.training.plot": [
        ([], "directory"),
        (["{missing}"], "missing"),
        (["{problems}"], "problems"),
        (["{directory}"], "metrics.jsonl"),
        (["{torn_run}"], "metrics.jsonl"),
    ],
    "runtime.serve": [
        ([], "checkpoint"),
        ([""], "checkpoint"),
        (["{missing}"], "missing"),
        (["{directory}"], "config.json"),
        (["{directory}", "--port", "65536"], "--port"),
        (["{directory}", "--port", "http"], "--port"),
        (["{directory}", "--host", "no such host"], "--host"),
        (["{directory}", "--drain", "-1"], "--drain"),
        (["{directory}", "--replicas", "0"], "--replicas"),
        (["{directory}", "--max-seconds", "0"], "--max-seconds"),
        (["{directory}", "--max-requests", "0"], "--max-requests"),
        (["{directory}", "--max-body", "many"], "--max-body"),
        (["{directory}", "--trace", "{missing}/run.trace"], "--trace"),
    ],
    "traces": [
        ([], "show|"),
        (["list"], "list"),
        *(
            ([command, f"{{{name}}}"], name)
            for command in ("show", "export", "page", "watch")
            for name in ("missing", "empty", "torn")
        ),
        *((["replay", *verify, "{directory}"], "directory") for verify in ([], ["--verify"])),
        (["replay", "{torn}", "--checkpoint", "{directory}"], "--verify"),
        (["replay", "{torn}", "--verify", "--checkpoint", "{missing}"], "--checkpoint"),
        (["export", "{torn}", "-o", "{missing}/picture.json"], "--output"),
        (["export", "{torn}", "-o", "{torn}"], "--output"),
        (["page", "{torn}", "-o", "{torn}"], "--output"),
        *((["what-if", "{torn}", *given], given[0]) for given in WHAT_IF),
        *(
            (["what-if", "{torn}", "--depth", wrong], wrong.split("(")[0])
            for wrong in (
                "Fixe(2)",
                "MaxChildren(2)",
                "LatentDiff(",
                "Fixed(-1)",
                "Fixed(print(1))",
                "__import__('os')",
            )
        ),
        (["what-if", "{missing}"], "missing"),
        (["what-if", "{torn}", "--figure", "{new}"], "--sweep"),
        (["what-if", "{torn}", "--depth", "LatentDiff(0.1)", "--sweep", "t=1,2"], "no policy has t in it"),
        *((["simulate", f"{{{name}}}"], name) for name in ("missing", "empty", "torn", "directory")),
        *((["simulate", "{torn}", *given], given[0]) for given in SIMULATE),
        (["simulate", "{torn}", "--device", "{torn}"], "is no device"),
        (["simulate", "{torn}", "--device", "{objects}"], "is no device"),
        *((["latents", f"{{{name}}}"], name) for name in ("missing", "empty", "torn")),
        (["latents", "{torn}", "--count", "0"], "--count"),
        (["latents", "{torn}", "--first", "-1"], "--first"),
        (["latents", "{torn}", "-o", "{missing}/figure.svg"], "--output"),
        (["latents", "{torn}", "-o", "{torn}"], "--output"),
        *((["export", "--jsonl", f"{{{name}}}"], name) for name in ("missing", "empty", "torn")),
        (["export", "--jsonl", "{torn}", "-o", "{torn}"], "--output"),
    ],
}


STARTED_BY_THE_RUNTIME = {"runtime.chat.rendering"}
"""Programs that talk with the process that starts them, and that nobody types."""


def commands() -> list[str]:
    """All modules of the repository that do something when they are run."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = [path for path in files if '__name__ == "__main__"' in path.read_text().split("\n\n\n")[-1]]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found]
    return [command for name in names if (command := name.removesuffix(".__main__")) not in STARTED_BY_THE_RUNTIME]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files and directories by what is wrong with them; `problems` and `new` are right."""
    contents = {
        "problems": b'[{"nums": [22, 26, 31, 53], "target": 27}]',
        "empty": b"",
        "torn": b'[{"nums": [22, 26',
        "none": b"[]",
        "binary": bytes(range(256)),
        "deep": b'[{"x": ' * 100_000,
        "numberless": b'[{"nums": [], "target": 27}]',
        "negative": b'[{"nums": [22, 26, 31, -53], "target": 27}]',
        "objects": b'{"nums": [22, 26, 31, 53], "target": 27}',
        "nameless": b'[{"nums": [22, 26, 31, 53]}]',
    }
    found = {name: tmp_path / name for name in (*contents, "missing", "new", "directory", "torn_run")}
    for name, content in contents.items():
        found[name].write_bytes(content)
    found["directory"].mkdir()
    found["torn_run"].mkdir()
    (found["torn_run"] / "training.safetensors").write_bytes(b"torn")
    (found["torn_run"] / "metrics.jsonl").write_bytes(b"[1]\n")
    return found


def test_every_command_is_tested() -> None:
    assert sorted(CASES) == sorted(commands())


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [(command, *case) for command, cases in CASES.items() for case in cases],
)
def test_what_makes_no_sense_is_told(
    command: str,
    arguments: list[str],
    named: str,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(checkpoint, "assemble", refuse)
    monkeypatch.setattr("sys.argv", [command, *(argument.format_map(files) for argument in arguments)])
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115 - closed with the test's process
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    told = capfd.readouterr().err
    assert ended.value.code == 2, told
    assert named in told
    assert "Traceback" not in told
