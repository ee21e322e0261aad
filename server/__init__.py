"""The coordinator: sends orders, vets and merges updates, keeps the run's folder."""
