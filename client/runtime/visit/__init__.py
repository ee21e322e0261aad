"""The steps of a visit: admit, receive, evaluate, work; each readable by itself.
What a site keeps of a study between visits is here too; no messages, no network.
"""
