"""How messages travel: channels, servers, answers, and what gRPC makes of cancellation and broken requests."""
