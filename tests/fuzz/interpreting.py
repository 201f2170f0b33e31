"""Runs the bodies of a program's threads, and keeps the books that its checks are about."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable

import anyio

from policies import DepthPolicy, Limits
from policies.depth.base import Role
from runtime import Answer, Child, Engine, ReasoningThread
from runtime.errors import (
    BraidError,
    CapacityError,
    ConstraintError,
    EngineClosed,
    EngineFailed,
    LimitExceeded,
    PolicyError,
    PromptError,
    QueueFull,
    ThreadStateError,
)
from runtime.link.constraints import Constraint
from tests.fuzz import program as p
from tests.fuzz.alone import Said
from tests.fuzz.faults import Injected
from tests.fuzz.generating import CONTEXT
from tests.fuzz.mailing import Mail, is_about_an_end
from tests.fuzz.subjects import BY_LOAD, DEPTHS, FORMS, SAMPLINGS, FaultyAtRole, policy_of
from tests.fuzz.tools import is_on_purpose, start_call

_PROBE = p.Root(prompt=(3, 1, 2), body=(p.Generate(tokens=2),), depth="shallow")


class Planned(Exception):
    """What a body raises on purpose."""


class Books:
    """What happened in one program."""

    def __init__(self, setup: p.Setup) -> None:
        self.setup = setup
        self.said: list[Said] = []
        self.roots: list[ReasoningThread] = []
        self.driven: list[tuple[p.Root, Answer]] = []
        self.counts: Counter[str] = Counter()
        self.mail = Mail()
        self.findings: list[str] = self.mail.findings
        self.failed: list[EngineFailed] = []
        self.hit: list[BraidError] = []
        """Errors of threads that a fault of the device ended alone."""

    def judge(self, error: BaseException) -> None:
        """Counts an error that a program like this may meet; anything else is a finding."""
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                self.judge(part)
            return
        self.counts[type(error).__name__] += 1
        if isinstance(error, EngineFailed):
            self.failed.append(error)
            if self.setup.fault is not None and _is_caused_by_injection(error):
                return
        elif type(error) is BraidError and self.setup.fault is not None and _is_caused_by_injection(error):
            self.hit.append(error)
            return
        elif isinstance(error, EngineClosed):
            if self.setup.leaves_after is not None or self.setup.cancelled_after is not None:
                return
        elif (
            isinstance(error, LimitExceeded | QueueFull | PromptError | Planned | TimeoutError)
            or is_on_purpose(error)
            or (isinstance(error, ThreadStateError) and (_is_about_merging(error) or is_about_an_end(error)))
            or (isinstance(error, PolicyError) and _is_about_a_policy(error))
            or (isinstance(error, ConstraintError) and "No token of the model's vocabulary" in str(error))
            or (isinstance(error, CapacityError) and self._is_too_much(error))
        ):
            return
        self.findings.append("unexpected error: " + "".join(traceback.format_exception(error)))

    def _is_too_much(self, error: CapacityError) -> bool:
        """Whether the pool may be too small for a thread, or a row that has no room for siblings side by side."""
        setup = self.setup
        is_narrow = setup.backend == "torch" and setup.deterministic
        is_about_rows = any(what in str(error) for what in ("a row has", "no row of pages"))
        return setup.pages * setup.page_size < self._longest() or (is_narrow and is_about_rows)

    def _longest(self) -> int:
        """Tokens that the pages of a thread may hold: siblings lie side by side where they may have been merged."""
        return 4 * CONTEXT if self.counts["branch"] or self.counts["join"] else CONTEXT


def _is_caused_by_injection(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Injected):
        cause = cause.__cause__
    return cause is not None


def _is_about_merging(error: ThreadStateError) -> bool:
    text = str(error)
    return any(what in text for what in ("merged", "Start it by fork()", "to go on from", "different depths"))


def _is_about_a_policy(error: PolicyError) -> bool:
    text = str(error)
    return any(f"no {what}" in text for what in ("measure", "bound", "role")) or "Speculative" in text


class Interpreter:
    """Bodies of threads on one open engine."""

    def __init__(self, engine: Engine, setup: p.Setup, books: Books) -> None:
        self._engine = engine
        self._books = books
        self._setup = setup

    async def probe(self) -> None:
        """One more tree when all others have ended: it is served, or refused by an engine that has failed."""
        has_failed, begun = bool(self._books.failed), len(self._books.roots)
        await self.root(_PROBE)
        if has_failed and len(self._books.roots) > begun:
            self._books.findings.append("an engine that has failed opens another tree")

    async def root(self, root: p.Root) -> None:
        """One tree from beginning to end; errors go into the books."""
        if root.starts_after:
            await anyio.sleep(root.starts_after / 1000)
        limits, policy = root.limits or self._setup.limits, policy_of(root.depth)
        try:
            if root.body is None:
                answer = await self._engine.run(
                    root.prompt, limits=limits, policy=policy, priority=root.priority, max_tokens=root.max_tokens
                )
                self._books.driven.append((root, answer))
                return
            thread = self._engine.thread(
                root.prompt, limits=limits, policy=policy, priority=root.priority, max_tokens=root.max_tokens
            )
            self._books.roots.append(thread)
            async with thread:
                said = self._begin(thread, root.depth, limits)
                said.receive(root.prompt)
                await _Body(self, thread, said, root.depth).run(root.body)
            self._books.mail.check_board(thread)
        except Exception as error:
            self._books.judge(error)

    def _begin(self, thread: ReasoningThread, depth: str, limits: Limits | None, parent: Said | None = None) -> Said:
        role: Role = "root" if len(thread.path) == 1 else "child"
        opened_with = DEPTHS[depth].for_thread(role, len(thread.path) - 1)
        said = Said(thread.path, opened_with) if parent is None else parent.fork(thread.path, opened_with)
        if depth in BY_LOAD or (limits is not None and limits.iterations is not None):
            said.is_comparable = False
        self._books.said.append(said)
        self._books.counts["threads"] += 1
        return said

    @property
    def books(self) -> Books:
        return self._books

    def child_program(
        self, spawn: p.Spawn, parent: Said, depth: str, is_comparable: bool
    ) -> Callable[[ReasoningThread], Awaitable[p.Tokens | None]]:
        """What a spawned thread runs."""
        forked = Said(parent.path, parent.depth, list(parent.steps), parent.origin, parent.is_comparable, parent.cut)

        async def run(thread: ReasoningThread) -> p.Tokens | None:
            assert spawn.body is not None
            said = self._begin(thread, depth, spawn.limits, forked if spawn.fork else None)
            said.is_comparable = said.is_comparable and is_comparable
            said.receive(spawn.message)
            return await _Body(self, thread, said, depth).run(spawn.body)

        return run


class _Body:
    """One thread's actions, one after the other."""

    def __init__(self, interpreter: Interpreter, thread: ReasoningThread, said: Said, depth: str) -> None:
        self._interpreter = interpreter
        self._books = interpreter.books
        self._thread = thread
        self._said = said
        self._depth = depth
        self._children: list[Child] = []
        self._has_children = False

    async def run(self, actions: tuple[p.AnyAction, ...]) -> p.Tokens | None:
        """The message that the body returns, if any."""
        try:
            return await self._run(actions)
        finally:
            self._said.fills = self._policy_now(None)
            if self._thread.tokens != self._said.tokens:
                self._books.findings.append(
                    f"thread {self._said.path} has the context {self._thread.tokens}, it should be {self._said.tokens}"
                )

    async def _run(self, actions: tuple[p.AnyAction, ...]) -> p.Tokens | None:
        for action in actions:
            self._books.counts[type(action).__name__.lower()] += 1
            try:
                message = await self._do(action)
            except (Planned, EngineFailed, EngineClosed):
                raise
            except Exception as error:
                # A body may go on after most errors, and then everything holds as if there had been none.
                self._books.judge(error)
            else:
                if message is not None:
                    return message
        return None

    async def _do(self, action: p.AnyAction) -> p.Tokens | None:
        match action:
            case p.Append(tokens=tokens):
                self._thread.append(tokens)
                self._said.receive(tokens)
            case p.Generate():
                await self._generate(action)
            case p.Stream():
                await self._stream(action)
            case p.Spawn():
                self._spawn(action)
            case p.Branch():
                await self._branch(action)
            case p.Join():
                await self._join(action)
            case p.Call():
                self._children.append(start_call(self._thread, action))
            case p.Send():
                await self._books.mail.send(self._thread, self._children, action)
            case p.Post(text=text):
                self._books.mail.post(self._thread, text)
            case p.Receive(how=how):
                self._said.receive(await self._books.mail.receive(self._thread, how))
            case p.Cancel(child=index):
                if self._children:
                    self._children[index % len(self._children)].cancel()
            case p.Within(milliseconds=milliseconds, body=body):
                with anyio.move_on_after(milliseconds / 1000) as scope:
                    return await self._run(body)
                self._books.counts["deadlines met"] += scope.cancelled_caught
            case p.Pause(milliseconds=milliseconds):
                await anyio.sleep(milliseconds / 1000)
            case p.Fail():
                raise Planned("on purpose")
            case p.Return(tokens=tokens):
                return tokens
        return None

    def _policy_now(self, name: str | None) -> DepthPolicy:
        path = self._said.path
        role: Role = "root" if len(path) == 1 else "parent" if self._has_children else "child"
        if name in BY_LOAD:
            self._said.is_comparable = False
        policy = DEPTHS[name or self._depth]
        return policy if isinstance(policy, FaultyAtRole) else policy.for_thread(role, len(path) - 1)

    async def _generate(self, action: p.Generate) -> None:
        depth, sampling = self._policy_now(action.depth), SAMPLINGS[action.sampling]
        form = FORMS[action.form] if action.form is not None and self._thread.text else None
        try:
            generation = await self._thread.generate(
                action.tokens,
                stop=action.stop,
                sampling=sampling,
                depth=None if action.depth is None else DEPTHS[action.depth],
                nowait=action.nowait,
                regex=form,
            )
        except BaseException:
            self._books.counts["generates cut"] += 1
            self._said.cut.add(depth)
            raise
        constraint = None if form is None else Constraint(kind="regex", form=form)
        self._books.counts["texts constrained"] += form is not None
        self._said.sample(generation.tokens, generation.logprobs, sampling, depth, constraint)
        if form is not None and generation.reason == "stop" and not re.fullmatch(form, generation.text.strip()):
            self._books.findings.append(f"thread {self._said.path} said {generation.text!r} for {form}")
        if len(generation.tokens) > action.tokens or len(generation.depths) != len(generation.tokens):
            self._books.findings.append(f"thread {self._said.path}: {generation} for {action}")

    async def _stream(self, action: p.Stream) -> None:
        depth, sampling = self._policy_now(action.depth), SAMPLINGS[action.sampling]
        delivered: list[int] = []
        stream = self._thread.stream(
            action.tokens, sampling=sampling, depth=None if action.depth is None else DEPTHS[action.depth]
        )
        generation = None
        try:
            taken = 0
            while action.take is None or taken < action.take:
                chunk = await anext(stream, None)
                if chunk is None:
                    break
                delivered += chunk.tokens
                taken += 1
            generation = stream.generation
        finally:
            logprobs = None if generation is None else generation.logprobs
            if generation is None:
                self._books.counts["streams left"] += 1
            self._said.sample(tuple(delivered), logprobs, sampling, depth)
            if generation is None:
                self._said.cut.add(depth)
            if action.leave == "close":
                await stream.aclose()
            del stream
        if generation is not None and generation.tokens != tuple(delivered):
            self._books.findings.append(f"thread {self._said.path} streamed {delivered}, and generated {generation}")
        if action.leave == "raise":
            raise TimeoutError

    def _spawn(self, action: p.Spawn) -> None:
        depth = action.depth or self._depth
        make = self._thread.fork if action.fork else self._thread.spawn
        program = None
        if action.body is not None:
            program = self._interpreter.child_program(action, self._said, depth, self._said.is_comparable)
        child = make(
            action.message,
            program=program,
            limits=action.limits,
            depth=None if action.depth is None else DEPTHS[action.depth],
            priority=action.priority,
            max_tokens=12,
        )
        self._children.append(child)
        self._has_children = True

    async def _branch(self, action: p.Branch) -> None:
        first = len(self._children)
        for child in action.children:
            self._spawn(child)
        await self._merge(self._children[first:])
        self._thread.append(action.conclusion)
        self._said.receive(action.conclusion)

    async def _merge(self, chosen: list[Child]) -> None:
        before = self._thread.tokens
        try:
            await self._thread.join(chosen, merge=True)
        finally:
            self._children = [child for child in self._children if not child.is_joined]
            # Those that were cancelled have left nothing; what the model drove is not in the books.
            left = [child.path for child in chosen if child.answer is None or child.answer.reason != "cancelled"]
            known = {said.path: said for said in self._books.said}
            children = tuple(known[path] for path in sorted(left) if path in known)
            self._said.merge(self._thread.tokens[len(before) :], children, is_known=len(children) == len(left))

    async def _join(self, action: p.Join) -> None:
        chosen, before = self._children[: action.most], self._thread.tokens
        if action.how == "merge":
            await self._merge(chosen)
            return
        try:
            if action.how == "as completed":
                await self._take_as_completed(chosen)
            elif action.how == "all":
                await self._thread.join(chosen, append=action.append)
            else:
                await self._thread.first(chosen, append=action.append)
        finally:
            self._children = [child for child in self._children if not child.is_joined]
            self._said.receive(self._thread.tokens[len(before) :])

    async def _take_as_completed(self, chosen: list[Child]) -> None:
        answers = self._thread.as_completed(chosen)
        for _ in chosen:
            try:
                await anext(answers)
            except Exception as error:
                self._books.judge(error)
