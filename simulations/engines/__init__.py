"""How a simulated run is carried out: in process, in a pool of workers, through Ray.
The engine changes how long a run takes, never what it gives.
"""
