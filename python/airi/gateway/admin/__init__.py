"""`/admin`: what operators change while it serves. Each route is decided on as `admin` and audited by its own name."""
