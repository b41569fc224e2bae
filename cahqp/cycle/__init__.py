"""Cycles: plans, and stages as subprocesses over run directories. Imports no torch."""
