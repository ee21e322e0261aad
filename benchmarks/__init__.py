"""Speed against hand-written loops in the same run; run as modules from the repository root."""
