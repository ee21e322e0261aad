"""A Ray cluster of several machines: which nodes there are, who works where, and how messages get there and back.
Ray on one machine, through Flower's runtime, is one room up.
"""
