"""What clients, brokers and the controller share: messages, errors, the record batch, metadata, the wire."""
