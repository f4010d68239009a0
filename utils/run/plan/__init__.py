"""What a run will take: tasks, steps, time, memory (`--dry_run`)."""
