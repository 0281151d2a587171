"""Where a follower's log and its leader's agree: what a leader answers a subscription, and what the follower does then.

Pure. Theory of operation:

**Tips.** Under one leader epoch one broker appends, each batch behind its own whole log, and a follower appends only what
its leader pushes, behind a log that agrees with the leader's. So a batch, named by (leader epoch, offset), is the same in
every log that has it, and so is all that precedes it (Raft's log matching; KIP-101). The *tip* of a log is (leader epoch of
its last batch, end offset). A log whose tip lies in another's history is a beginning of that other log: same batches, same
borders, same producers. It may start above or below it; retention changes no tip, and a log without batches still has one,
as long as it knows the epoch of the batch before its start.

**The exchange.** The follower says its tip. The leader looks it up in its history:

==================================================  ==========================================================
the follower's log                                  answer of the leader (`answer_subscribe`)
==================================================  ==========================================================
ends below the leader's log start                   StartOver: what comes next does not exist any more
says that nothing it holds agrees                   StartOver
is empty, never held a batch, and ends at 0         Push (the leader's log starts at 0)
does not know its tip                               Push where the leader does not know its own at the same offset,
                                                    which is its log start; else StartOver
has a tip older than all of the leader's history    StartOver
has a tip in the leader's history                   Push from its end
has another tip                                     Truncate: the leader's newest epoch that is not newer than the
                                                    follower's, and where the leader's log ends it
==================================================  ==========================================================

==================================================  ==========================================================
a Truncate, at the follower                         what it does (`cut_for`), and then subscribes again
==================================================  ==========================================================
none of its epochs is that old                      starts over: the histories part before all that it knows
the nearer of the two ends is below its log start   starts over: they part before its log start, so the producers that
                                                    it knew there are of the other history
otherwise                                           cuts at the nearer of the ends of its newest epoch that is not newer
                                                    than the answer's, in its own log and in the leader's (KIP-279)
==================================================  ==========================================================

**A cut never takes what both have.** Behind its own end of that epoch the follower holds only epochs between the two that
the exchange named, of which the leader has none; behind the leader's end the leader holds only epochs newer than the
follower's tip. A cut within a batch takes the whole batch: that batch is not common.

**It ends.** A Truncate always cuts something or starts over: the end of an epoch that is older than the tip's lies below the
follower's end, and one of the same epoch was named because the leader's is shorter. Starting over yields the leader's log
start with the leader's tip there, which is pushed to, unless retention has moved on meanwhile. So an exchange has at most
one round for each epoch of the follower's log, and two more.

**After an unclean election** all of this holds with the elected log as the leader's: the rules know nothing of commits. What
the follower loses by a cut or by starting over is what an operator has decided to lose.

A consumer's position is a tip, too: (leader epoch of the last batch read, next offset). Where that is not in the leader's
history, records that were read are not in the log any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from fencepost_node.log.leader_epochs import NO_EPOCH, LeaderEpochs


@dataclass(frozen=True, slots=True)
class FollowerPosition:
    """The tip of a follower's log: (end offset, leader epoch of the last batch; -1: not known, or there never was one).

    `nothing_agrees`: the follower has found that none of what it holds is the leader's.
    """

    log_end_offset: int
    last_epoch: int
    nothing_agrees: bool = False


@dataclass(frozen=True, slots=True)
class Push:
    """The follower's log is a beginning of the leader's: push from its end."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """The follower holds what the leader's history does not.

    `epoch` is the leader's newest epoch that is not newer than the follower's tip; the leader's log ends it at `end_offset`.
    """

    epoch: int
    end_offset: int


@dataclass(frozen=True, slots=True)
class StartOver:
    """The follower begins again, empty, at the leader's log start."""


def answer_subscribe(
    follower: FollowerPosition, epochs: LeaderEpochs, log_start_offset: int, log_end_offset: int
) -> Push | Truncate | StartOver:
    """The leader's answer, from its history and bounds: the first table."""
    end_offset = follower.log_end_offset
    if end_offset < log_start_offset or follower.nothing_agrees:
        return StartOver()
    if follower.last_epoch == NO_EPOCH:
        if end_offset == 0:
            return Push()
        alike = end_offset == log_start_offset and epochs.epoch_before(end_offset) == NO_EPOCH
        return Push() if alike else StartOver()
    epoch, epoch_end_offset = epochs.end_offset_for(follower.last_epoch, log_end_offset)
    if epoch == NO_EPOCH:
        return StartOver()
    if epoch < follower.last_epoch or epoch_end_offset < end_offset:
        return Truncate(epoch, epoch_end_offset)
    return Push()


def cut_for(answer: Truncate, epochs: LeaderEpochs, log_start_offset: int, log_end_offset: int) -> int | None:
    """Where the follower cuts its log, from its own history and bounds: the second table. None: it starts over."""
    own_epoch, own_end_offset = epochs.end_offset_for(answer.epoch, log_end_offset)
    if own_epoch == NO_EPOCH:
        return None
    cut = min(answer.end_offset, own_end_offset)
    return cut if cut >= log_start_offset else None
