"""Who may do what, how much of it, and with what content: decided before a request reaches an engine."""
