"""Chaos on real processes: a cluster and its clients run while processes are killed, paused and restarted and the network
between them is cut; then everything is read and judged.

    faults     the kinds of fault
    schedule   what happens when: a pure function of the seed
    cuts       how links between processes can be cut here: `network`, a network namespace for each process, or
               `fault_cuts`, by the faults of the cluster
    nemesis    carries the schedule out, and undoes it; `nemesis_log` remembers
    fleet      the client processes; `client` is what runs in each, `producing` and `consuming` what it does
    run        one run from start to verdict; `ending` is what is looked at once all is healed
    tail       counts acknowledgements while the histories are written
    measure    latency, throughput and unavailability, out of the recorded histories
    resumed    the answers to named producers about their predecessors, compared with the final log
    result     everything that the verdict is made of
    report     the folder that a run leaves: verdict, histories, logs, `pictures` and a `page`
"""
