"""What coordinator and site say to each other: instructions and answers, their form on the wire, and what travels when.
No network: transports are in `fedgraft.server.rounds` and `fedgraft.client.runtime`.
"""
