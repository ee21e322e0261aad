"""The kinds of local work: gradient steps, closed-form statistics, recalibration of norm layers."""
