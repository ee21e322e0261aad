"""The model on the site's device, the cases that are fed to it, and what it answers.
No optimiser steps.
"""
