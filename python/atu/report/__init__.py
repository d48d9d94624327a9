"""report.json and report.html of a run, and their figures."""
