"""Who may read the live page: passwords, sessions, and how the page is reached. Nothing of what is on the page."""
