"""The hospital: reads its own data, does the local work of a stage and answers instructions."""
