"""Messages as Flower cuts them into pieces, and what putting them together may take, at a site as at the server.
What messages say is in `protocol`.
"""
