"""The data folder of a broker: its identity, the folder of each partition, logs that are set aside."""
