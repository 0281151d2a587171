"""What the controller decides: plain functions over metadata, without I/O, clock or asyncio.

A **command** is a frozen dataclass that says what someone asks for or what has happened: a broker registers, a broker is
dead, a leader proposes an in-sync set. `decide(image, command, failed)` runs it on a `Draft` of the image and returns a
`Decision`: what changes, the image after it, and the answer; or raises the FencepostError that is the answer. Nothing
here is true for anyone until the shell (`commands.py`) has committed the changes.

One noun to a file:

- `draft`: the image being changed, and what it means for a broker to serve
- `partitions`: what follows for a partition when a broker or the partition changes (in-sync set, leader, epochs)
- `brokers`: registration, fencing, unfencing, controlled shutdown, failed replicas
- `isr`, `elections`, `reassignment`, `topics` (with `placement`), `producers`, `cluster`: what may be asked for
- `fence`: how far the fence of named producers stands
- `invariants`: what must hold after every decision, checked in production
"""
