"""`python -m analysis.report`: a profile's notebooks, run through papermill and gathered in one page."""
