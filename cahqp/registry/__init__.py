"""Versions of edge packages."""
