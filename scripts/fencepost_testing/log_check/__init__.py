"""The one check of logs against what was sent: lost, duplicated, reordered, and what else can be wrong.

Pure: values in, findings out. Every check of this project uses the same rules:

- `fencepost workload verify` and the tests (`record_check`): what a consumer reads, against the ledgers of workloads;
- the history check (`history_check`): what clients recorded, of sends, polls and final reads;
- the replica check (`replica_check`): the stamps in the segment files on brokers' disks;
- the simulator's verdict: the records in the leaders' files, against all that simulated producers sent.

`check.LogCheck` is the whole check, for logs that are known whole. The history check knows logs in part, so it takes the
rules one by one: `send_order.SendOrder`, `sequence_order.SequenceOrder`, `outcomes.wrong_outcome`.
"""
