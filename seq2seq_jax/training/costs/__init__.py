"""What a run costs, and whether it fits, before it is begun.

* `planning.py`: the command `plan`: compiles every step, does a few of each, and says what the run will cost.
* `counts.py`: numbers of a step that need no run: its arrays, its matrix products, the bytes its program holds.
* `summary.py`: costs of batch shapes put together to those of an epoch and of the run, and the lines that tell them.
* `available.py`: bytes that there are on each device.
* `fits.py`: refuses a run that needs more than that, and names the largest batch that fits.
"""
