"""What a site does for privacy on its own: the ledger of what it spent."""
