"""The live page: a local cluster in a browser, and a batch's way through a failover, step by step (`fencepost ui`)."""
