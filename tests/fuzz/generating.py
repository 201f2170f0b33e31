"""Random programs: everything is drawn from one seed."""

from __future__ import annotations

import math
import random
from typing import Literal

from policies import Limits
from tests.fuzz import program as p
from tests.fuzz.subjects import DEPTHS, FAILING, FORMS, MODELS, SAMPLINGS, VOCAB

CONTEXT = 64
_COMMON = tuple(name for name in DEPTHS if name not in FAILING)


class _Drawing:
    """Draws the parts of one program, under a budget of actions that keeps it small."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.left = 40
        self.longest = 12

    def likely(self, probability: float) -> bool:
        return self.chance.random() < probability

    def program(self, faults: bool) -> p.Program:
        setup = self.setup(faults)
        if setup.backend == "torch":
            self.left, self.longest = 12, 6
        if self.likely(0.06):
            return p.Program(setup=setup, roots=(self.crowd(),))
        count = self.chance.choice((1, 1, 2, 2, 3, 5))
        return p.Program(setup=setup, roots=tuple(self.root() for _ in range(count)))

    def setup(self, faults: bool) -> p.Setup:
        chance = self.chance
        page_size = chance.choice((3, 4, 4, 4, 16))
        one = math.ceil(CONTEXT / page_size)
        lanes = chance.choice((8, 16, 48))
        ending = chance.random()
        backend: Literal["torch", "native"] = "torch" if self.likely(0.15) else "native"
        return p.Setup(
            loop=chance.choice(("asyncio", "trio")),
            model=chance.choice((*MODELS, "raven")),
            backend=backend,
            trace=chance.choice(("none", "none", "none", "engine", "recording")),
            observer=chance.choice(("none", "none", "counts", "raises")),
            pages=max(1, one // 4) if self.likely(0.05) else chance.choice((one, one + 1, 2 * one, 6 * one)),
            page_size=page_size,
            lanes=lanes,
            chunk=chance.choice((4, 8)),
            slots=chance.choice((None, None, 1, 2)),
            # Sums of PyTorch's depend on how many threads share them.
            threads=2 if backend == "native" and self.likely(0.1) else 1,
            deterministic=self.likely(0.9),
            reuse_prefixes=self.likely(0.8),
            queue_size=chance.choice((4096, 4096, 8, 2)),
            seed=chance.choice((0, 3, 2**40)),
            limits=self.limits() if self.likely(0.1) else None,
            leaves_after=chance.uniform(0, 15) if ending < 0.08 else None,
            cancelled_after=chance.uniform(0, 15) if ending > 0.94 else None,
            fault=self.fault() if faults and self.likely(0.1) else None,
        )

    def fault(self) -> p.Fault:
        place = self.chance.choice(tuple(p.KINDS))
        return p.Fault(place=place, at=1 + int(self.chance.expovariate(0.1)), kind=self.chance.choice(p.KINDS[place]))

    def limits(self) -> Limits:
        chance = self.chance
        return chance.choice(
            (
                Limits(tokens=chance.randint(0, 30)),
                Limits(iterations=chance.randint(0, 150)),
                Limits(threads=chance.randint(1, 4)),
                Limits(tree_depth=chance.randint(0, 2)),
                Limits(seconds=chance.uniform(0, 0.03)),
                Limits(tool_calls=chance.randint(0, 2)),
                Limits(tokens=40, iterations=400, threads=6, tree_depth=2, seconds=0.1),
            )
        )

    def tokens(self, least: int = 1, most: int = 14) -> p.Tokens:
        if self.likely(0.4):
            # Prompts that others have too, so that pages are shared.
            return tuple(range(5, 5 + self.chance.randint(least, most)))
        return tuple(self.chance.randrange(VOCAB) for _ in range(self.chance.randint(least, most)))

    def depth(self) -> str:
        return self.chance.choice(FAILING) if self.likely(0.05) else self.chance.choice(_COMMON)

    def root(self) -> p.Root:
        is_driven = self.likely(0.15)
        limits = self.limits() if self.likely(0.2) else None
        return p.Root(
            prompt=self.tokens(),
            body=None if is_driven else self.body(0),
            depth=self.depth(),
            limits=Limits(tree_depth=1) if is_driven and limits is None else limits,
            priority=self.chance.choice((0, 0, 0, 1, -1)),
            max_tokens=self.chance.randint(1, 16),
            starts_after=0.0 if self.likely(0.6) else self.chance.uniform(0, 5),
        )

    def crowd(self) -> p.Root:
        """Many children at once, in one way or another."""
        count = self.longest * 2
        each = p.Spawn(message=self.tokens(), body=(self.generate(), p.Return(tokens=(1, 2))), fork=self.likely(0.5))
        end = self.chance.choice(((p.Join(),), (p.Join(how="first"),), ()))
        return p.Root(prompt=self.tokens(), body=(*(each,) * count, *end), depth=self.depth())

    def body(self, level: int) -> tuple[p.AnyAction, ...]:
        actions: list[p.AnyAction] = []
        for _ in range(self.chance.randint(1, 6 if level == 0 else 3)):
            self.left -= 1
            if self.left < 0:
                break
            actions.append(self.action(level))
        if self.likely(0.6) and any(isinstance(action, p.Spawn | p.Call) for action in actions):
            actions.append(p.Join())
        if level and self.likely(0.6):
            actions.append(p.Return(tokens=self.tokens(0, 4)))
        return tuple(actions)

    def generate(self) -> p.Generate:
        form = self.chance.choice(tuple(FORMS)) if self.likely(0.15) else None
        return p.Generate(
            tokens=self.chance.randint(1, self.longest),
            sampling=self.sampling(),
            depth=self.depth() if self.likely(0.1) else None,
            stop=self.tokens(1, 3) if form is None and self.likely(0.2) else (),
            nowait=self.likely(0.1),
            form=form,
        )

    def sampling(self) -> str:
        return "greedy" if self.likely(0.5) else self.chance.choice(tuple(SAMPLINGS))

    def mail(self) -> p.AnyAction:
        match self.chance.choices(("send", "post", "receive"), (9, 2, 6))[0]:
            case "send":
                return p.Send(to=None if self.likely(0.5) else self.chance.randrange(4), tokens=self.tokens(1, 3))
            case "post":
                return p.Post(text=self.chance.choice("abc"))
            case _:
                return p.Receive(how=self.chance.choice(("mailbox", "mailbox", "wait", "context")))

    def action(self, level: int) -> p.AnyAction:
        chance = self.chance
        match chance.choices(
            (
                "generate",
                "stream",
                "append",
                "child",
                "call",
                "join",
                "merged",
                "cancel",
                "within",
                "pause",
                "fail",
                "mail",
            ),
            (30, 14, 8, 22 if level < 3 else 0, 9, 14, 8 if level < 3 else 0, 4, 9 if level < 4 else 0, 4, 1, 20),
        )[0]:
            case "merged":
                return p.Branch(
                    children=tuple(
                        p.Spawn(message=self.tokens(1, 5), body=self.body(level + 1), fork=True)
                        for _ in range(chance.randint(1, 3))
                    ),
                    conclusion=self.tokens(1, 2),
                )
            case "generate":
                return self.generate()
            case "mail":
                return self.mail()
            case "stream":
                return p.Stream(
                    tokens=chance.randint(1, self.longest),
                    sampling=self.sampling(),
                    depth=self.depth() if self.likely(0.1) else None,
                    take=chance.choice((None, 0, 1, 2, 3)),
                    leave=chance.choice(("close", "break", "raise")),
                )
            case "append":
                return p.Append(tokens=self.tokens(0, 9))
            case "child":
                is_driven = self.likely(0.1)
                return p.Spawn(
                    message=self.tokens(),
                    body=None if is_driven else self.body(level + 1),
                    fork=self.likely(0.4),
                    depth=self.depth() if self.likely(0.2) else None,
                    limits=Limits(tree_depth=0) if is_driven else self.limits() if self.likely(0.1) else None,
                    priority=chance.choice((None, None, 0, 2)),
                )
            case "call":
                return p.Call(
                    tool=chance.choice(("quick", "quick", "slow", "hurried", "lasting", "fails", "raises")),
                    milliseconds=chance.uniform(0, 4),
                )
            case "join":
                return p.Join(
                    how=chance.choice(("all", "all", "first", "as completed", "merge")),
                    append=self.likely(0.8),
                    most=chance.choice((None, None, 1, 2)),
                )
            case "cancel":
                return p.Cancel(child=chance.randrange(4))
            case "within":
                return p.Within(
                    milliseconds=chance.choice((0.0, chance.uniform(0, 10), chance.uniform(0, 100))),
                    body=self.body(level + 1),
                )
            case "pause":
                return p.Pause(milliseconds=chance.choice((0.0, chance.uniform(0, 3))))
            case _:
                return p.Fail()


def random_program(seed: int, *, faults: bool = True) -> p.Program:
    """The program of a seed; `faults` allows one of the device's to be planted in it."""
    return _Drawing(seed).program(faults)
