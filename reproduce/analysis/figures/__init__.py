"""The figures of the notebooks that read the study's records (5 to 10), one module per topic.

Every function takes the plan and the records of `evidence.read`, draws one figure and returns what
the notebook uses afterwards.
"""
