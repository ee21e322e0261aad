"""One machine plays everyone: phantom hospitals, local engines, and the command that runs a study."""
