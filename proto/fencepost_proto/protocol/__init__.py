"""What goes between clients, brokers and the controller: errors, record batches, records, metadata, limits, stubs."""
