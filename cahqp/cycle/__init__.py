"""The cycle: stages as processes over run directories, and what they leave behind. Imports no torch."""
