"""The Open Inference Protocol, version 2, over HTTP, with its extensions for generating text and for repositories."""
