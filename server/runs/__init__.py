"""What a run keeps on the coordinator's disk: its folder, snapshots, retained statistics.
Nothing here asks sites.
"""
