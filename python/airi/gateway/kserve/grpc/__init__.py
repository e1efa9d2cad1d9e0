"""The Open Inference Protocol over gRPC: each call is one of the HTTP routes', made within the process."""
