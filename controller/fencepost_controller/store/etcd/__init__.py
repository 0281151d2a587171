"""Metadata in etcd, for any number of controllers of which one is active.

**Layout**, below one prefix for each cluster::

    leader                     who is active: its id, address and incarnation. It has a lease
    log/<version>              one commit: what it changed, and the version that it follows (`layout.py`)
    parts/<version>/<try>/<n>  pieces of a commit that is larger than one request
    version                    the newest version, and its lineage
    image/<version>/<n>        pieces of an image
    snapshot                   which image is whole. The log behind it is kept, the log up to it is deleted
    epoch-base                 added to every controller epoch; a recovery raises it

`leader` and `log/` are neighbours, so one watch brings both in the order in which they happened.

**Leadership.** The key `leader` is created by a transaction that compares it with absent. Its *creation revision* is
a number that no other leadership has, and `epoch-base` plus that number is the *controller epoch*. A controller
commits by one transaction, which compares `leader`'s creation revision with its own, and `version` with the version
that it was decided on. So from the moment at which another controller has created `leader`, nothing of the old one is
committed, whatever it believes, however long it slept, and however late its requests arrive. All that follows makes
it fast, not safe.

**What an answer rests on.** A group of commands that changes something is answered after its transaction; one that
changes nothing (a refusal, a repetition) after a transaction with the same comparisons and without changes. So a
controller that was paused answers nothing any more once another one has begun.

**Between any two lines of a commit**

1. The group is decided; the process dies. Nothing has happened.
2. Pieces of a large commit are written; the process dies. No log entry names them; a later snapshot deletes them.
   Their key holds the number of the try, so two tries never share a piece.
3. The transaction is sent, and no answer comes: it was made, was not, *or will be*. The controller sends the same
   transaction again until an answer is definite; it answers no one, and begins no other commit, before. If the
   transaction finds that `version` is the one that it would have written, and `log/<version>` is this very try (its
   content says so), the earlier request was the one that was made. If it succeeds, the earlier one can never be made:
   its comparison fails from now on.
4. No definite answer comes while the lease lasts: the controller steps down. Its callers get NOT_CONTROLLER: the
   outcome is not known to them.
5. The comparison fails because `leader` is another's, or gone: it steps down. Was an earlier request of step 3 made
   before the other one took over? The next leader reads the log after it has created `leader`, so it has that commit.
   Callers: as in 4.
6. The transaction is made; the process dies before it has told anyone. The next leader has the commit, and publishes
   it.

**Taking over.** Create the own lease (each controller keeps one, also as a standby); if `leader` is a dead one's,
delete it in a transaction that compares its creation revision; create it; read `version`, and the log behind the own
image, in the transaction that created it. Whoever dies between two of these leaves a `leader` that its lease removes,
or none. A wrong verdict of death costs the other one its leadership, never a commit.

**A lease that is lost and not noticed**: the holder counts from the moment at which it *sent* the last renewal that
was answered, by its own clock; when the lease's time is over it steps down. It may be paused then, or its clock may
be slow; the comparison holds nevertheless.

**etcd that has gone back** (restored from a backup). Revisions and versions fall. A reader compares at every
connection: its image must be a version of the store's history, in its lineage (`decisions/lineage.py`); where it is
not, the process ends as it does with a SQLite store that was put back, and brokers that know a newer version make a
controller that started later find the same. `fencepost controller recover` makes the store whole, and sets
`epoch-base` above every epoch that a broker has seen: creation revisions may come again.
"""
