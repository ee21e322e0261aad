"""The coordinator: sends instructions, validates and aggregates updates, keeps the run's folder."""
