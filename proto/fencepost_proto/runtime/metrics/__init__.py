"""What a process counts, as Prometheus reads it: values (`families`), their text (`exposition`), the port (`listener`)."""
