"""Watching a run while it goes on: in the terminal, and on a page for a browser. Nothing here changes anything."""
