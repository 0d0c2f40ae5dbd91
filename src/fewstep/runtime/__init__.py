"""What a process stands on: ranks, precision, progress, safe files."""
