"""From a run's folder to tables, plots and one self-contained HTML page."""
