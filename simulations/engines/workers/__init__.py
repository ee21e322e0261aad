"""A pool of worker processes that answer for the sites of a simulation, and how messages get there and back.
Engines in one process and through Ray are one room up; a cluster is the room beside.
"""
