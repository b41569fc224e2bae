"""Decision whether a package may replace the running one."""
