"""What people type; one file per family of commands."""
