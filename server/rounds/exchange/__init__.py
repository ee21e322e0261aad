"""One exchange: who takes part, what comes back, whether it may count, and who may come late.
The loop over rounds, and what a run ends with, are one room up.
"""
