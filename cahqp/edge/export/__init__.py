"""Export of model files as checked edge packages."""
