"""What a broker does for its clients, free of any protocol: plain values in, plain values and FencepostErrors out.

The edges (`grpc/`) translate between these and messages.
"""
