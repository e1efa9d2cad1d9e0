"""Models of other servers behind the gateway: what they are asked, and their answers as those of an engine."""
