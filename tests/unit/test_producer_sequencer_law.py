"""The sequencer's law, against a model of brokers that lose, reorder, fail over and forget.

Every batch of the application ends delivered (it is in the log, once, in order) or failed (certainly not in the log,
or said to be possibly there, and then at most once and in order as well).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fencepost.producing.batch import Attempt, AttemptState, Batch, Delivered, Failed
from fencepost.producing.sequencer import Sequencer
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.record_batch import MAX_EPOCH
from tests.unit.model_partition import Answer, ModelPartition, Route

TIMEOUT_S = 30.0
PRODUCER_ID = 7

INJECTED: list[type[errors.FencepostError]] = [
    errors.NotEnoughReplicas,
    errors.NotEnoughReplicasAfterAppend,
    errors.CorruptMessage,
    errors.UnknownServerError,
    errors.MessageTooLarge,
    errors.NotLeaderOrFollower,
    errors.StorageError,
]


class World:
    """The shell around one sequencer, and the brokers."""

    def __init__(self, *, named: bool, epoch: int = 0) -> None:
        self.now = 0.0
        self.labels: dict[Batch, range] = {}  # the numbers of its records
        self.records = 0
        self.brokers = ModelPartition(lambda attempt: self.labels[attempt.batch])
        self.sequencer = Sequencer("orders-0", PRODUCER_ID, epoch, named=named)
        self.batches: list[Batch] = []
        self.unstamped: deque[Batch] = deque()
        self.outbox: deque[Attempt] = deque()
        self.route: Route | None = None
        self.resolutions: Counter[Batch] = Counter()
        self.next_id = PRODUCER_ID + 1
        self.splits = 0
        self.squats = 0

    # ---- Events, each with a number that picks ----

    def new_batch(self, pick: int) -> None:
        batch = Batch(1 + pick % 7, self.now + TIMEOUT_S)
        self.labels[batch] = range(self.records, self.records + batch.record_count)
        self.records += batch.record_count
        self.batches.append(batch)
        self.unstamped.append(batch)
        self.pump()

    def pump(self, _: int = 0) -> None:
        while self.unstamped and self.sequencer.has_room(self.now):
            self.sequencer.add(self.unstamped.popleft())
            self.outbox.extend(self.sequencer.attempts_to_send(self.now))
        self.outbox.extend(self.sequencer.attempts_to_send(self.now))

    def write(self, pick: int) -> None:
        for _ in range(1 + pick % 4):
            if not self.outbox or self.route is None:
                return
            attempt = self.outbox.popleft()
            if attempt.state is AttemptState.QUEUED:
                attempt.state = AttemptState.WRITTEN
                self.route.inbox.append(attempt)

    def process(self, pick: int) -> None:
        routes = [route for route in self.brokers.routes if route.inbox]
        if routes:
            self.brokers.process(routes[pick % len(routes)], swallow=pick % 2 == 0)

    def commit(self, pick: int) -> None:
        self.brokers.commit(1 + pick % 5)

    def answer(self, pick: int) -> None:
        waiting = [route for route in self.brokers.routes if route.outbox and route.alive]
        if waiting:
            route = waiting[pick % len(waiting)]
            self.take(route.outbox.pop(pick % len(route.outbox)))

    def take(self, answer: Answer) -> None:
        if answer.error is None:
            self.count(self.sequencer.acknowledged(answer.attempt, answer.position, answer.duplicate))
        else:
            self.count(self.sequencer.refused(answer.attempt, answer.error, self.now))
            self.take_pieces(answer.attempt.batch)
        self.pump()

    def take_pieces(self, batch: Batch) -> None:
        """The sequencer has split it: each piece is a batch of the application's from now on."""
        start = self.labels[batch].start
        for piece in batch.pieces:
            self.labels[piece] = range(start, start + piece.record_count)
            start += piece.record_count
        if batch.pieces and batch in self.batches:
            assert start == self.labels[batch].stop
            self.splits += 1
            number = self.batches.index(batch)
            self.batches[number : number + 1] = batch.pieces

    def break_route(self, _: int = 0) -> None:
        """The stream breaks: its answers are lost, its messages may still arrive."""
        if self.route is not None:
            self.route.alive = False
            self.route = None
            self.outbox.clear()
            self.count(self.sequencer.detach())

    def connect(self, pick: int = 0) -> None:
        """To the present leader; an older route may still answer."""
        if self.route is not None and pick % 3 == 0:
            self.route.alive = False
        self.route = self.brokers.connect()
        self.outbox.clear()
        self.count(self.sequencer.attach(self.route.leader_epoch))
        self.pump()

    def failover(self, pick: int) -> None:
        self.brokers.failover(keep=pick % 4, return_of_zombie=pick % 5 == 0, answer_waiting=pick % 2 == 0)

    def lose_inbox(self, pick: int) -> None:
        routes = [route for route in self.brokers.routes if route.inbox and not route.alive]
        if routes:
            routes[pick % len(routes)].inbox.clear()

    def expire_state(self, _: int) -> None:
        """Only a producer without an unresolved batch expires."""
        if self.brokers.quiet and all(batch.certainly_absent for batch in self.sequencer.unresolved):
            self.brokers.forget_producers()
            self.brokers.zombie = None

    def pass_time(self, pick: int) -> None:
        self.now += [0.02, 0.1, 1.0, 20.0][pick % 4]
        self.count(self.sequencer.expire(self.now))
        self.pump()

    def inject(self, pick: int) -> None:
        self.brokers.refuse_next.append(INJECTED[pick % len(INJECTED)]("injected"))

    def refuse_for_now(self, _: int) -> None:
        self.brokers.refuse_next.append(errors.NotEnoughReplicas("for now"))

    def limit_records(self, pick: int) -> None:
        """Leaders take fewer records in a batch from now on, or more again."""
        self.brokers.max_records = (1, 2, 3, 1_000)[pick % 4]

    def squat(self, pick: int) -> None:
        """Someone writes under this id, in the present epoch before its owner does, or in the next."""
        counts = [1 + (pick + number) % 3 for number in range(1 + pick % 7)]
        self.brokers.squat(self.sequencer.producer_id, self.sequencer.epoch + pick % 2, counts)
        self.squats += 1

    def hold(self, _: int) -> None:
        if self.sequencer.named:
            self.sequencer.hold()

    def grant(self, _: int = 0) -> None:
        """Answers what the sequencer awaits; a named producer's fence stands everywhere before it does."""
        if not self.sequencer.awaiting_identity:
            return
        if self.sequencer.named:
            epoch = self.sequencer.epoch + 1
            self.brokers.log.fence = epoch
            if self.brokers.zombie is not None:
                self.brokers.zombie.fence = epoch
            self.sequencer.grant(PRODUCER_ID, epoch)
        else:
            self.sequencer.grant(self.next_id, 0)
            self.next_id += 1
        self.pump()

    def batches_in_flight(self, pick: int) -> None:
        """Several batches, as far as the brokers' doorstep."""
        for n in range(2 + pick % 4):
            self.new_batch(pick + n)
        self.write(3)
        self.write(3)

    def process_all(self, pick: int) -> None:
        for route in self.brokers.routes:
            while route.inbox:
                self.brokers.process(route, swallow=pick % 2 == 0)

    def answer_all(self, _: int) -> None:
        for route in self.brokers.routes:
            while route.outbox and route.alive:
                self.take(route.outbox.pop(0))

    def count(self, resolved: list[Batch]) -> None:
        for batch in resolved:
            assert batch.outcome is not None
            self.resolutions[batch] += 1

    # ---- The end ----

    def heal(self) -> None:
        """Faults stop; everything must be resolved within the delivery timeout."""
        self.brokers.refuse_next.clear()
        self.connect()
        for _ in range(2_000):
            self.grant()
            self.pump()
            self.write(3)
            self.write(3)
            for route in self.brokers.routes:
                while route.inbox:
                    self.brokers.process(route)
            self.brokers.commit(100)
            for route in self.brokers.routes:
                while route.outbox:
                    self.take(route.outbox.pop(0))
            if not self.unstamped and not self.sequencer.unresolved:
                return
            self.now += 0.02
            self.count(self.sequencer.expire(self.now))
        raise AssertionError(f"unresolved after the faults stopped: {self.sequencer.unresolved}")

    def check(self) -> None:
        labels = [entry.label for entry in self.brokers.log.entries]
        records = [record for label in labels for record in label]
        assert len(set(records)) == len(records), "a record is in the log twice"
        assert records == sorted(records), "records are out of order"
        assert [n for batch in self.batches for n in self.labels[batch]] == list(range(self.records)), "one was dropped"
        for batch in self.batches:
            label = self.labels[batch]
            assert self.resolutions[batch] == 1
            match batch.outcome:
                case Delivered(offset):
                    assert set(label) <= set(records), f"batch {label} was acknowledged and is lost"
                    assert offset == -1 or labels[offset] == label
                case Failed(error):
                    there = set(label) & set(records)
                    assert error.may_have_been_appended or not there, f"batch {label} is there nevertheless"
                case None:
                    raise AssertionError(f"batch {label} was never resolved")


Event = Callable[[World, int], None]
GENTLE: list[Event] = [  # nothing here makes a failure necessary
    World.new_batch,
    World.batches_in_flight,
    World.write,
    World.process,
    World.process_all,
    World.commit,
    World.answer,
    World.answer_all,
    World.break_route,
    World.connect,
    World.failover,
    World.lose_inbox,
    World.refuse_for_now,
]
EVENTS: list[Event] = [
    *GENTLE,
    World.connect,
    World.expire_state,
    World.pass_time,
    World.inject,
    World.limit_records,
    World.hold,
    World.grant,
]
Script = list[tuple[Event, int]]


def scripts(events: list[Event], size: int) -> st.SearchStrategy[Script]:
    return st.lists(st.tuples(st.sampled_from(events), st.integers(0, 59)), max_size=size)


def play(script: Script, *, named: bool = False, epoch: int = 0, max_records: int = 1_000) -> World:
    world = World(named=named, epoch=epoch)
    world.brokers.max_records = max_records
    world.connect()
    for event, pick in script:
        event(world, pick)
    world.heal()
    return world


BOUNDED = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@BOUNDED
@given(scripts(EVENTS, 80))
def test_every_batch_is_in_the_log_once_and_in_order_or_failed_truthfully(script: Script) -> None:
    play(script).check()


@BOUNDED
@given(scripts(EVENTS, 80))
def test_the_same_holds_for_a_named_producer(script: Script) -> None:
    play(script, named=True).check()


@settings(BOUNDED, max_examples=100)
@given(scripts([event for event in EVENTS if event is not World.pass_time], 80))
def test_used_up_epochs_bring_a_new_producer_id_and_no_duplicate(script: Script) -> None:
    world = play(script, epoch=MAX_EPOCH)
    records = [record for entry in world.brokers.log.entries for record in entry.label]
    assert len(set(records)) == len(records)


STORIES = 400
STORY_EVENTS = 150


def story(seed: int, events: list[Event], *, named: bool = False, max_records: int = 1_000) -> World:
    """A long script from one number: hypothesis shrinks well, but its scripts are short."""
    chance = random.Random(seed)
    weights = [chance.choice((1, 2, 8)) for _ in events]  # each story has faults of its own
    script = [(event, chance.randrange(60)) for event in chance.choices(events, weights, k=STORY_EVENTS)]
    return play(script, named=named, max_records=max_records)


def test_a_stranger_under_the_same_id_loses_and_doubles_nothing() -> None:
    reached: Counter[str] = Counter()
    for seed in range(STORIES):
        world = story(seed, [*EVENTS, World.squat, World.squat])
        try:
            world.check()
        except AssertionError as failure:
            raise AssertionError(f"seed {seed}: {failure}") from failure
        reached["squats"] += world.squats
        reached["ids"] += world.sequencer.producer_id - PRODUCER_ID
        for batch in world.batches:
            if isinstance(batch.outcome, Failed):
                reached[type(batch.outcome.error).__name__] += 1
    assert all(reached[what] >= 10 for what in ("squats", "ids", "ProducerIdTaken")), reached


@pytest.mark.parametrize("named", [False, True], ids=["anonymous", "named"])
def test_long_stories_keep_the_law_and_reach_what_it_is_about(named: bool) -> None:
    reached: Counter[str] = Counter()
    for seed in range(STORIES):
        world = story(seed, EVENTS, named=named)
        try:
            world.check()
        except AssertionError as failure:
            raise AssertionError(f"seed {seed}: {failure}") from failure
        reached["retried"] += sum(batch.attempts - 1 for batch in world.batches if batch.attempts)
        reached["recognised"] += world.brokers.recognised
        reached["split"] += world.splits
        reached["epochs"] += world.sequencer.epoch
        for batch in world.batches:
            match batch.outcome:
                case Delivered(-1):
                    reached["delivered, offset unknown"] += 1
                case Delivered():
                    reached["delivered"] += 1
                case Failed(error):
                    reached["failed, unknown" if error.may_have_been_appended else "failed for certain"] += 1
    for what in ("retried", "recognised", "epochs", "delivered", "failed, unknown", "failed for certain", "split"):
        assert reached[what] >= 100, reached


def test_refusals_lost_answers_and_failovers_alone_fail_nothing_and_hide_no_offset() -> None:
    for seed in range(STORIES):
        world = story(seed, GENTLE)
        world.check()
        for batch in world.batches:
            assert isinstance(batch.outcome, Delivered), f"seed {seed}"
            assert batch.outcome.base_offset >= 0, f"seed {seed}"
        assert world.sequencer.epoch == 0, f"seed {seed}"


def test_batches_that_are_too_large_are_split_and_nothing_fails_or_begins_an_epoch() -> None:
    splits = 0
    for seed in range(STORIES):
        world = story(seed, GENTLE, max_records=1 + seed % 3)
        world.check()
        for batch in world.batches:
            assert isinstance(batch.outcome, Delivered), f"seed {seed}"
        assert world.sequencer.epoch == 0, f"seed {seed}"
        splits += world.splits
    assert splits > STORIES
