"""What a site computes for each term of a loss: one file per kind, put together by `objective`."""
