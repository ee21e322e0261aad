"""Methods side by side: the same data, the same splits, the same budget, and what may be concluded from it."""
