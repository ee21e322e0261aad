"""Ground that everything stands on: errors, files, logs, seeds, the terminal, frozen values.
Nothing of studies, models or networks lives here.
"""
