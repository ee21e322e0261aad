"""The coordinator: sends instructions, vets and aggregates updates, keeps the run's folder."""
