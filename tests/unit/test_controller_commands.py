"""The queue of commands: one at a time, committed in groups, nothing true before its commit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from fencepost_controller import commands as commands_module
from fencepost_controller.commands import MAX_GROUP, Commands
from fencepost_controller.decisions.brokers import RegisterBroker, UnfenceBroker
from fencepost_controller.decisions.cluster import FormCluster
from fencepost_controller.decisions.draft import Command, Draft
from fencepost_controller.decisions.producers import InitProducer
from fencepost_controller.decisions.topics import CreateTopic
from fencepost_controller.failed_replicas import FailedReplicas
from fencepost_controller.store import CommitFailed, StoreError, VersionMismatch
from fencepost_controller.store.sqlite import SqliteStore
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    Changes,
    ClusterIdentity,
    Entity,
    MetadataImage,
    NextProducerId,
    Partition,
)
from tests.asynchronous import asynchronous


class GatedStore:
    """Commits when it is told to; remembers every commit."""

    def __init__(self, *entities: Entity) -> None:
        self.entities = entities
        self.commits: list[tuple[int, int, list[str]]] = []
        self.fails: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def load(self) -> tuple[int, Sequence[Entity]]:
        return 0, self.entities

    def commit(self, expected_version: int, version: int, changes: Changes) -> None:
        assert self.gate.wait(10)
        if self.fails is not None:
            raise self.fails
        self.commits.append((expected_version, version, sorted(changes)))

    def close(self) -> None: ...


class Fixture:
    def __init__(self, store: GatedStore) -> None:
        self.store = store
        self.published: list[Changes] = []
        self.images: list[MetadataImage] = []
        self.commands = Commands(store, FailedReplicas(), self._on_commit)

    def _on_commit(self, image: MetadataImage, changes: Changes) -> None:
        assert self.commands.image is image
        self.images.append(image)
        self.published.append(changes)


def with_commands(test: Callable[[Fixture], Awaitable[None]], *entities: Entity) -> None:
    async def run() -> None:
        fixture = Fixture(GatedStore(*entities))
        await fixture.commands.load()
        task = asyncio.create_task(fixture.commands.run())
        try:
            async with asyncio.timeout(10):
                await test(fixture)
        finally:
            fixture.store.gate.set()
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())


def test_nothing_is_visible_or_answered_before_the_commit() -> None:
    async def test(fixture: Fixture) -> None:
        fixture.store.gate.clear()
        answer = asyncio.create_task(fixture.commands.submit(FormCluster("c")))
        await asyncio.sleep(0.02)  # whatever would come too early has the time to
        assert not answer.done()
        assert fixture.commands.image.version == 0
        assert not fixture.published
        fixture.store.gate.set()
        committed = await answer
        assert (committed.answer, committed.version) == ("c", 1)
        assert fixture.commands.image.cluster_id == "c"

    with_commands(test)


def test_what_gathers_during_a_commit_is_one_version_and_one_change() -> None:
    async def test(fixture: Fixture) -> None:
        fixture.store.gate.clear()
        first = asyncio.create_task(fixture.commands.submit(FormCluster("c")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [asyncio.create_task(fixture.commands.submit(InitProducer("loader"))) for _ in range(3)]
        await asyncio.sleep(0.01)
        fixture.store.gate.set()
        formed, named = await first, [await task for task in rest]
        assert [formed.version, *(committed.version for committed in named)] == [1, 2, 2, 2]
        assert [committed.answer.epoch for committed in named] == [0, 1, 2], "each on what the one before it left"
        assert [(before, after) for before, after, _ in fixture.store.commits] == [(0, 1), (1, 2)]
        assert [image.version for image in fixture.images] == [1, 2]
        ids = NextProducerId(0, FIRST_NAMED_ID + 1)
        assert fixture.published[1] == {"producers/loader": named[2].answer, "next-producer-id": ids}

    with_commands(test)


def test_a_failed_commit_fails_its_commands_and_leaves_the_image_as_it_was() -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.commands.submit(FormCluster("c"))
        before = fixture.commands.image
        fixture.store.fails = CommitFailed("disk full")
        outcomes = await asyncio.gather(
            fixture.commands.submit(InitProducer("loader")),
            fixture.commands.submit(InitProducer("loader", 0, 0)),
            fixture.commands.submit(InitProducer("loader", 9, 9)),  # refused, but on grounds that never became true
            return_exceptions=True,
        )
        assert all(isinstance(outcome, errors.StorageError) for outcome in outcomes), outcomes
        assert fixture.commands.image is before
        assert len(fixture.published) == 1
        fixture.store.fails = None
        assert (await fixture.commands.submit(InitProducer("loader"))).answer.epoch == 0

    with_commands(test)


def test_a_refusal_waits_for_the_commit_of_what_it_rests_on() -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.commands.submit(FormCluster("c"))
        broker = (await fixture.commands.submit(RegisterBroker(1, "life", "c", "host:1"))).answer
        await fixture.commands.submit(UnfenceBroker(1, broker.broker_epoch))
        fixture.store.gate.clear()
        created = asyncio.create_task(fixture.commands.submit(CreateTopic("a", "id-1", 1, 1)))
        refused = asyncio.create_task(fixture.commands.submit(CreateTopic("a", "id-2", 1, 1)))
        await asyncio.sleep(0.02)
        assert not refused.done()
        fixture.store.gate.set()
        await created
        with pytest.raises(errors.TopicAlreadyExists):
            await refused

    with_commands(test)


def test_a_command_without_changes_commits_nothing() -> None:
    async def test(fixture: Fixture) -> None:
        await fixture.commands.submit(FormCluster("c"))
        committed = await fixture.commands.submit(FormCluster("d"))
        assert (committed.answer, committed.version) == ("c", 1)
        assert len(fixture.store.commits) == len(fixture.published) == 1

    with_commands(test)


def test_a_refused_command_leaves_nothing_to_those_after_it_in_its_group() -> None:
    async def test(fixture: Fixture) -> None:
        fixture.store.gate.clear()
        first = asyncio.create_task(fixture.commands.submit(FormCluster("c")))
        await asyncio.sleep(0.01)
        refused = asyncio.create_task(fixture.commands.submit(HalfDone()))
        named = asyncio.create_task(fixture.commands.submit(InitProducer("loader")))
        await asyncio.sleep(0.01)
        fixture.store.gate.set()
        await first
        assert (await named).answer.producer_id == FIRST_NAMED_ID, "not after the ids that the refused one took"
        with pytest.raises(errors.InvalidRequest):
            await refused

    with_commands(test)


def test_a_command_that_finds_done_what_another_of_its_group_did_answers_with_that_version() -> None:
    async def test(fixture: Fixture) -> None:
        formed, again = await asyncio.gather(
            fixture.commands.submit(FormCluster("c")), fixture.commands.submit(FormCluster("d"))
        )
        assert (formed.version, again.version, again.answer) == (1, 1, "c")

    with_commands(test)


def test_a_caller_who_left_in_the_queue_is_dropped_and_one_who_left_later_is_not() -> None:
    async def test(fixture: Fixture) -> None:
        fixture.store.gate.clear()
        decided = asyncio.create_task(fixture.commands.submit(InitProducer("decided")))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(fixture.commands.submit(InitProducer("waiting")))
        await asyncio.sleep(0.01)
        decided.cancel()
        waiting.cancel()
        fixture.store.gate.set()
        await fixture.commands.submit(InitProducer("last"))
        assert sorted(fixture.commands.image.producers) == ["decided", "last"]

    with_commands(test)


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_module, "MAX_WAITING_COMMANDS", 3)

    async def test(fixture: Fixture) -> None:
        fixture.store.gate.clear()
        running = asyncio.create_task(fixture.commands.submit(FormCluster("c")))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(fixture.commands.submit(InitProducer("p"))) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(errors.NotController, match="3 commands wait"):
            await fixture.commands.submit(InitProducer("p"))
        fixture.store.gate.set()
        await asyncio.gather(running, *waiting)

    with_commands(test)


def test_a_long_queue_is_committed_in_groups_of_bounded_size() -> None:
    async def test(fixture: Fixture) -> None:
        await asyncio.gather(*[fixture.commands.submit(InitProducer("p")) for _ in range(2 * MAX_GROUP + 1)])
        assert fixture.commands.image.producers["p"].epoch == 2 * MAX_GROUP
        assert [(before, after) for before, after, _ in fixture.store.commits] == [(0, 1), (1, 2), (2, 3)]

    with_commands(test)


def test_close_carries_out_what_waits_and_refuses_the_rest() -> None:
    async def test(fixture: Fixture) -> None:
        waiting = asyncio.create_task(fixture.commands.submit(FormCluster("c")))
        await asyncio.sleep(0)
        fixture.commands.close()
        with pytest.raises(errors.NotController, match="stopping"):
            await fixture.commands.submit(InitProducer("p"))
        assert (await waiting).answer == "c"

    with_commands(test)


class HalfDone(Command[None]):
    def decide(self, draft: Draft) -> None:
        draft.put(NextProducerId(1_000, FIRST_NAMED_ID + 1_000))
        raise errors.InvalidRequest("no")


class Buggy(Command[None]):
    def decide(self, draft: Draft) -> None:
        draft.put(ClusterIdentity("half done"))
        raise KeyError("oops")


class Broken(Command[None]):
    def decide(self, draft: Draft) -> None:
        draft.put(Partition("no-topic", 0, (1,), (1,), 1, 0, 0))


def test_a_bug_in_one_decision_is_that_commands_failure_alone() -> None:
    async def test(fixture: Fixture) -> None:
        with pytest.raises(errors.UnknownServerError, match="oops"):
            await fixture.commands.submit(Buggy())
        assert (await fixture.commands.submit(FormCluster("c"))).answer == "c"

    with_commands(test)


@pytest.mark.parametrize("how", ["decision", "store"])
@asynchronous
async def test_a_broken_invariant_ends_the_task_with_nothing_committed(how: str) -> None:
    fixture = Fixture(GatedStore())
    task = asyncio.create_task(fixture.commands.run())
    if how == "store":
        fixture.store.fails = VersionMismatch("version 7, not 0")
    asked = asyncio.create_task(fixture.commands.submit(Broken() if how == "decision" else FormCluster("c")))
    with pytest.raises(errors.InvariantBroken):
        await asyncio.wait_for(task, 10)
    assert not fixture.store.commits
    assert not asked.done()
    asked.cancel()


@asynchronous
async def test_a_store_that_contradicts_itself_is_refused() -> None:
    fixture = Fixture(GatedStore(Partition("no-topic", 0, (1,), (1,), 1, 0, 0)))
    with pytest.raises(StoreError, match="contradicts"):
        await fixture.commands.load()


@asynchronous
async def test_the_image_is_what_the_store_holds(tmp_path: object) -> None:
    path = f"{tmp_path}/metadata.sqlite"
    store = SqliteStore(path)
    commands = Commands(store, FailedReplicas(), lambda image, changes: None)
    await commands.load()
    task = asyncio.create_task(commands.run())
    await commands.submit(FormCluster("c"))
    broker = (await commands.submit(RegisterBroker(1, "life", "c", "host:1"))).answer
    await commands.submit(UnfenceBroker(1, broker.broker_epoch))
    await commands.submit(CreateTopic("a", "id", 3, 1))
    await commands.submit(InitProducer("loader"))
    commands.close()
    await task
    store.close()
    again = Commands(SqliteStore(path), FailedReplicas(), lambda image, changes: None)
    await again.load()
    assert again.image == commands.image
