"""Python API: models, results and stages; `cahqp` offers its names."""
