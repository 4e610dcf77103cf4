"""Hardware and stand-ins for it."""
