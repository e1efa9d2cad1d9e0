"""What every model call must pass: content rules."""
